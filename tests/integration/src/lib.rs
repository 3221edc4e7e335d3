//! Integration tests: real binaries on test hosts in network namespaces.
