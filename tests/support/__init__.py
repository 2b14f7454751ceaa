"""What tests share: fakes at the seams, small models, servers, and waiting."""
