//! The data path on hosts in network namespaces of their own, with the kernel's links and rules.

mod balancing;
mod connections;
mod encrypted;
mod encryption;
mod firewall;
mod kernels;
mod lab;
mod load;
mod local;
mod mesh;
mod node;
mod overlay;
mod paths;
