"""Methods of ``costmodel`` run on real tensors and real ranks, and the model compared with what they did."""
