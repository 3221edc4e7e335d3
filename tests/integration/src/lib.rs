//! Test hosts for the integration tests: real binaries in network namespaces.
//!
//! Owns: making hosts and a network between them, starting daemons, breaking things, waiting, and
//! removing everything again, also when a test fails.
//! Does not know: the code of the daemon; it runs `shoal` as a user does and reads what it prints.
//! Invariant: every name that is made carries the number of this process, so that test runs beside
//! each other do not meet.

mod callers;
mod capture;
mod cleanup;
mod command;
mod containers;
mod fixture;
mod host;
mod lab;
mod leftovers;
mod load;
mod traffic;
mod wait;

pub use callers::{Callers, Target, client_hello};
pub use capture::{Capture, Heard};
pub use command::Answer;
pub use containers::{Sample, containers, watched};
pub use fixture::{IMAGE, Task, booted, joined, load_image, running};
pub use host::{Host, Usage};
pub use lab::{Lab, program};
pub use leftovers::{Leftovers, cgroups};
pub use load::{Arrived, Load};
pub use traffic::{Seen, ask_tcp, ask_udp, ask_with_word, connects_to, in_namespace, udp_refused};
pub use wait::{LONG, SHORT, wait_for, wait_until};
