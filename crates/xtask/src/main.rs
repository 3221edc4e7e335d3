//! Chores of the repository: `cargo xtask tidy | codegen | docs | bench`.
//!
//! Owns: the checks that clippy cannot make, the generated files, and how the benchmarks start.
//! Does not know: anything about clusters; it reads manifests, sources and `ARCHITECTURE.md`.
//! Invariant: a check never writes, and a file it complains about is named with its line.

mod codegen;
mod docs;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the Shoal repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Checks the rules of ARCHITECTURE.md and CONTRIBUTING.md that clippy cannot.
    Tidy,
    /// Writes the Rust code of proto/*.proto, without needing protoc.
    Codegen {
        /// Only says whether the checked-in files are up to date.
        #[arg(long)]
        check: bool,
    },
    /// Writes the command line reference from the definitions in shell/cli.
    Docs {
        /// Only says whether the checked-in file is up to date.
        #[arg(long)]
        check: bool,
    },
    /// Builds and runs the benchmarks (release), all or the named ones.
    #[command(trailing_var_arg = true)]
    Bench {
        /// Names and options, handed on to the bench program.
        #[arg(allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(&Args::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: &Chore) -> Result<()> {
    let root = root()?;
    match chore {
        Chore::Tidy => tidy::run(&root),
        Chore::Codegen { check } => codegen::run(&root, Mode::of(*check)),
        Chore::Docs { check } => docs::run(&root, Mode::of(*check)),
        Chore::Bench { args } => bench(&root, args),
    }
}

/// Whether generated files are written or only compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Write,
    Check,
}

impl Mode {
    fn of(check: bool) -> Self {
        if check { Self::Check } else { Self::Write }
    }
}

/// Writes `text` to `path`, or in check mode says whether it is there already.
fn settle(path: &Path, text: &str, mode: Mode) -> Result<()> {
    let old = std::fs::read_to_string(path).unwrap_or_default();
    if old == text {
        return Ok(());
    }
    if mode == Mode::Check {
        bail!("{} is out of date: run the same command without --check", path.display());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

/// Programs that the benchmarks of real hosts start: as users have them, so a release build too.
fn build_programs(root: &Path) -> Result<()> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let builds: [(&str, &[&str], &str); 2] = [
        ("shoal", &[], ""),
        // It runs in a container without an operating system.
        ("whoami", &["--target", &triple], "-C target-feature=+crt-static"),
    ];
    for (package, options, flags) in builds {
        let mut command = Command::new(cargo());
        command.args(["build", "--release", "--package", package]).args(options);
        if !flags.is_empty() {
            command.env("RUSTFLAGS", flags);
        }
        let status = command.current_dir(root).status().context("cannot start cargo")?;
        if !status.success() {
            bail!("{package} cannot be built: {status}");
        }
    }
    Ok(())
}

fn bench(root: &Path, args: &[String]) -> Result<()> {
    if std::env::var_os("SHOAL_BIN").is_none() || std::env::var_os("WHOAMI_BIN").is_none() {
        build_programs(root)?;
    }
    let status = Command::new(cargo())
        .args(["run", "--release", "--package", "bench", "--"])
        .args(args)
        .current_dir(root)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the benchmarks ended with {status}");
    }
    Ok(())
}

/// The cargo that runs us.
fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// The folder of the workspace.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("crates/xtask is not two folders deep")?;
    Ok(root.to_path_buf())
}
