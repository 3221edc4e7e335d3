//! The daemon's configuration: a TOML file, then the arguments over it.
//!
//! Owns: its fields and defaults. Invariant: a field that is not known is refused by its name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cli::{DaemonArgs, Encryption, LogFormat};
use network::EncryptionMode;
use serde::Deserialize;

const FILE_DEFAULT: &str = "/etc/shoal/shoal.toml";
const DATA_DIR_DEFAULT: &str = "/var/lib/shoal";
const RUN_DIR_DEFAULT: &str = "/run/shoal";

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    hostname: Option<String>,
    log_level: Option<String>,
    log_format: Option<String>,
    /// Engine labels of this node, for constraints.
    labels: Option<std::collections::BTreeMap<String, String>>,
    /// Registries that are spoken to without TLS.
    insecure_registries: Option<Vec<String>>,
    /// Cgroup below which all containers are.
    cgroup_parent: Option<PathBuf>,
    /// `lan` or `wan`: how soon a silent manager is taken for lost.
    raft_timing: Option<String>,
    /// `auto` or `user-space`: who encrypts networks that are encrypted.
    encryption: Option<String>,
    /// Where metrics are served.
    metrics_addr: Option<String>,
}

/// What the daemon runs with.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub hostname: String,
    pub log_level: String,
    pub log_format: LogFormat,
    pub labels: types::Labels,
    pub insecure_registries: Vec<String>,
    pub cgroup_parent: PathBuf,
    pub raft_timing: store::Timing,
    pub encryption: EncryptionMode,
    /// Where metrics are served; the port that was given once they are.
    pub metrics_addr: Option<SocketAddr>,
}

impl Config {
    /// Reads the file and lays the arguments over it.
    pub(crate) fn load(args: &DaemonArgs) -> Result<Self> {
        let file = read_file(args.config.as_deref())?;
        let log_format = match (args.log_format, file.log_format.as_deref()) {
            (Some(format), _) => format,
            (None, None | Some("text")) => LogFormat::Text,
            (None, Some("json")) => LogFormat::Json,
            (None, Some(other)) => bail!("log_format: `{other}` is neither text nor json"),
        };
        let raft_timing = match file.raft_timing.as_deref() {
            None | Some("lan") => store::Timing::LAN,
            Some("wan") => store::Timing::WAN,
            Some(other) => bail!("raft_timing: `{other}` is neither lan nor wan"),
        };
        let encryption = match (args.encryption, file.encryption.as_deref()) {
            (Some(Encryption::Auto), _) | (None, None | Some("auto")) => EncryptionMode::Auto,
            (Some(Encryption::UserSpace), _) | (None, Some("user-space")) => {
                EncryptionMode::UserSpace
            }
            (None, Some(other)) => bail!("encryption: `{other}` is neither auto nor user-space"),
        };
        let hostname = match args.hostname.clone().or(file.hostname) {
            Some(hostname) => hostname,
            None => host_name()?,
        };
        if hostname.is_empty() || hostname.len() > 255 {
            bail!("--hostname: must be 1 to 255 bytes");
        }
        let absolute =
            |path: PathBuf| std::path::absolute(&path).context("--data-dir or --run-dir");
        let data_dir = args.data_dir.clone().or(file.data_dir);
        let run_dir = args.run_dir.clone().or(file.run_dir);
        Ok(Self {
            data_dir: absolute(data_dir.unwrap_or_else(|| DATA_DIR_DEFAULT.into()))?,
            run_dir: absolute(run_dir.unwrap_or_else(|| RUN_DIR_DEFAULT.into()))?,
            hostname,
            log_level: args.log_level.clone().or(file.log_level).unwrap_or_else(|| "info".into()),
            log_format,
            labels: file.labels.unwrap_or_default(),
            insecure_registries: file.insecure_registries.unwrap_or_default(),
            cgroup_parent: file.cgroup_parent.unwrap_or_else(|| "/shoal".into()),
            raft_timing,
            encryption,
            metrics_addr: metrics_addr(args.metrics_addr.as_deref(), file.metrics_addr.as_deref())?,
        })
    }
}

/// As docker's `metrics-addr`.
fn metrics_addr(argument: Option<&str>, file: Option<&str>) -> Result<Option<SocketAddr>> {
    let (field, text) = match (argument, file) {
        (Some(text), _) => ("--metrics-addr", text),
        (None, Some(text)) => ("metrics_addr", text),
        (None, None) => return Ok(None),
    };
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => {
            bail!("{field}: `{text}` is not an IP address and a port, such as 127.0.0.1:9323")
        }
    }
}

fn read_file(named: Option<&Path>) -> Result<File> {
    let path = named.unwrap_or(Path::new(FILE_DEFAULT));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(File::default());
        }
        Err(error) => return Err(error).with_context(|| format!("--config {}", path.display())),
    };
    toml::from_str(&text).with_context(|| format!("--config {}", path.display()))
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host's name")?;
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = toml::from_str::<File>("data_dirr = \"/x\"").unwrap_err();
        assert!(error.to_string().contains("data_dirr"), "{error}");
    }

    #[test]
    fn an_address_for_metrics_is_one_of_ip_and_names_its_field_otherwise() {
        let v6: SocketAddr = "[::1]:9323".parse().unwrap();
        assert_eq!(metrics_addr(None, None).unwrap(), None);
        assert_eq!(metrics_addr(Some("[::1]:9323"), Some("x")).unwrap(), Some(v6));
        for wrong in ["", ":9323", "localhost:9323", "127.0.0.1", "127.0.0.1:65536"] {
            let error = metrics_addr(Some(wrong), None).unwrap_err().to_string();
            assert!(error.starts_with("--metrics-addr: "), "{error}");
            let error = metrics_addr(None, Some(wrong)).unwrap_err().to_string();
            assert!(error.starts_with("metrics_addr: "), "{error}");
        }
    }
}
