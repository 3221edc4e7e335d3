//! Definitions of `shoal image`.
//!
//! Owns: names, options, help. Does not know: what a command does.
//! Invariant: these commands are about one node, the one whose socket is asked.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Filters, ListFormat};

#[derive(Subcommand, Debug)]
pub(crate) enum Image {
    /// Load images from a tar archive (docker save or OCI) into this node
    Load(Load),
    /// List the images of this node
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Pull an image from its registry into this node
    ///
    /// Credentials are those that `docker login` and its like keep: `auths`, `credHelpers` and
    /// `credsStore` of config.json in $DOCKER_CONFIG, or in .docker of the home directory. They are
    /// read by this command, used for this pull, and not kept.
    Pull(Pull),
    /// Remove images from this node
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Load {
    /// Archive to read instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) filters: Filters,
    #[command(flatten)]
    pub(crate) format: ListFormat,
    /// Print IDs in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Show the digests that registries know the images by
    #[arg(long)]
    pub(crate) digests: bool,
    /// Only list images of this repository, or with this tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) reference: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Pull {
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub(crate) reference: String,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Rm {
    /// Remove images though containers or other names use them
    #[arg(short, long)]
    pub(crate) force: bool,
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}
