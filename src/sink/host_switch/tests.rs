//! The sink against a server in a thread.
