//! Options of `shoal daemon`.
//!
//! Owns: their names and help. Does not know: the configuration file's other keys.
//! Invariant: an option given here wins over the file, so each is optional.

use std::path::PathBuf;

use clap::ValueEnum;

/// What `shoal daemon` was given; the rest comes from the configuration file.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct DaemonArgs {
    /// Configuration file; /etc/shoal/shoal.toml is read when it exists
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where everything lasting is kept [default: /var/lib/shoal]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the socket and what a reboot may lose are kept [default: /run/shoal]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Name of this node [default: the host's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// error, warn, info, debug or trace, or directives such as info,manager=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How log lines are written [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Who encrypts networks that are encrypted: the kernel where it can, or never it
    /// [default: auto]
    #[arg(long, value_name = "WHO")]
    pub encryption: Option<Encryption>,
    /// Where metrics are served for Prometheus, without encryption or passwords, such as
    /// 127.0.0.1:9323 [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_addr: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    Auto,
    UserSpace,
}
