//! `shoal image`.
//!
//! Owns: how an archive is sent, and what is shown of images.
//! Does not know: how images are kept.
//! Invariant: an archive is sent in chunks as the daemon takes them, never read whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read};

use base::Timestamp;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use types::ImageName;
use wire::v1;

use super::{Failures, now, print_line, unknown_filter};
use crate::args::image::{Image as Command, Load, Ls, Pull, Rm};
use crate::client::Daemon;
use crate::credentials::{self, Credentials};
use crate::error::CliError;
use crate::output::{List, Row, human, row_of};

pub(super) async fn run(daemon: &mut Daemon, command: Command) -> Result<(), CliError> {
    match command {
        Command::Load(args) => load(daemon, &args).await,
        Command::Ls(args) => ls(daemon, &args).await,
        Command::Pull(args) => pull(daemon, &args).await,
        Command::Rm(args) => rm(daemon, &args).await,
    }
}

async fn load(daemon: &mut Daemon, args: &Load) -> Result<(), CliError> {
    let source: Box<dyn Read + Send> = match &args.input {
        Some(path) => {
            let file = File::open(path).map_err(|source| {
                CliError::failed(format!("--input: cannot open {}: {source}", path.display()))
            })?;
            Box::new(file)
        }
        None if io::stdin().is_terminal() => {
            return Err(CliError::usage(
                "--input",
                "requested load from stdin, but stdin is empty: name an archive",
            ));
        }
        None => Box::new(io::stdin()),
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let reader = tokio::task::spawn_blocking(move || send_chunks(source, &sender));
    let events = daemon.local.load_image(ReceiverStream::new(receiver)).await?.into_inner();
    let images = follow(events, args.quiet).await?;
    let read = reader.await.unwrap_or_else(|_| Err(io::Error::other("the reader ended")));
    read.map_err(|source| CliError::failed(format!("cannot read the archive: {source}")))?;
    for image in images {
        if image.references.is_empty() {
            print_line(format!("Loaded image ID: {}", image.id))?;
        }
        for name in &image.references {
            print_line(format!("Loaded image: {}", familiar(name)))?;
        }
    }
    Ok(())
}

/// Ends when the archive does, or when nobody takes the chunks any more.
fn send_chunks(
    mut source: Box<dyn Read + Send>,
    sender: &mpsc::Sender<v1::LoadImageRequest>,
) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = match source.read(&mut chunk) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        chunk.truncate(length);
        let request = v1::LoadImageRequest { chunk: chunk.into() };
        if length == 0 || sender.blocking_send(request).is_err() {
            return Ok(());
        }
    }
}

/// Shows progress until the stream ends; gives the images that are there now.
async fn follow(
    mut events: Streaming<v1::ImageEvent>,
    quiet: bool,
) -> Result<Vec<v1::Image>, CliError> {
    use v1::image_event::Event;
    let mut bars = Bars::new(quiet);
    let mut done = Vec::new();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(progress)) => bars.show(&progress),
            Some(Event::Done(image)) => done.push(image),
            None => {}
        }
    }
    Ok(done)
}

/// One bar a layer on a terminal, one line a change of status elsewhere.
struct Bars {
    bars: Option<MultiProgress>,
    layers: BTreeMap<String, (ProgressBar, String)>,
    quiet: bool,
}

impl Bars {
    fn new(quiet: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bars = (is_terminal && !quiet).then(MultiProgress::new);
        Self { bars, layers: BTreeMap::new(), quiet }
    }

    fn show(&mut self, progress: &v1::ImageProgress) {
        let is_new = !self.layers.contains_key(&progress.id);
        if self.quiet || (is_new && self.layers.len() >= LAYERS_MAX) {
            return;
        }
        let short = human::short(progress.id.strip_prefix("sha256:").unwrap_or(&progress.id));
        let bars = &self.bars;
        let (bar, status) = self.layers.entry(progress.id.clone()).or_insert_with(|| {
            let bar = bars.as_ref().map_or_else(ProgressBar::hidden, |bars| {
                bars.add(ProgressBar::new(progress.total).with_style(style()))
            });
            (bar.with_prefix(short.clone()), String::new())
        });
        bar.set_length(progress.total);
        bar.set_position(progress.current);
        if *status != progress.status {
            status.clone_from(&progress.status);
            bar.set_message(status.clone());
            if self.bars.is_none() {
                let id = if short.is_empty() { String::new() } else { format!("{short}: ") };
                eprintln!("{id}{status}");
            }
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {msg} [{bar:40}] {bytes}/{total_bytes}")
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

async fn pull(daemon: &mut Daemon, args: &Pull) -> Result<(), CliError> {
    let mut reference = args.reference.clone();
    let name = reference.rsplit('/').next().unwrap_or_default();
    if !name.contains([':', '@']) {
        if !args.quiet {
            print_line("Using default tag: latest")?;
        }
        reference.push_str(":latest");
    }
    let request = with_credentials(reference.clone()).await?;
    let events = daemon.local.pull_image(request).await?.into_inner();
    for image in follow(events, args.quiet).await? {
        for digest in image.digests.iter().filter(|_| !args.quiet) {
            print_line(format!("Digest: {}", digest.rsplit('@').next().unwrap_or(digest)))?;
        }
    }
    print_line(reference)
}

/// With what the user has for the image's registry.
async fn with_credentials(reference: String) -> Result<v1::PullImageRequest, CliError> {
    let registry = ImageName::parse(&reference).map_err(|fault| {
        let hint = fault.hint.clone();
        CliError::usage(&fault.field, &fault.message).hint(hint)
    })?;
    let mut request = v1::PullImageRequest { reference, ..Default::default() };
    match credentials::find(&registry.registry).await? {
        Some(Credentials::Password { username, password }) => {
            (request.username, request.password) = (username, password);
        }
        Some(Credentials::IdentityToken(token)) => request.identity_token = token,
        Some(Credentials::RegistryToken(token)) => request.registry_token = token,
        None => {}
    }
    Ok(request)
}

const IMAGES: List = List {
    table: "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    heads: HEADS,
    id: "ID",
};
const IMAGES_WITH_DIGESTS: List = List {
    table: "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    heads: HEADS,
    id: "ID",
};
const HEADS: &[(&str, &str)] = &[
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
];

async fn ls(daemon: &mut Daemon, args: &Ls) -> Result<(), CliError> {
    let mut reference = args.reference.clone().unwrap_or_default();
    for (key, value) in &args.filters.filters {
        match key.as_str() {
            "reference" if reference.is_empty() => reference.clone_from(value),
            "reference" => {
                return Err(CliError::usage("--filter", "only one reference can be given"));
            }
            other => return Err(unknown_filter(other, "reference")),
        }
    }
    let request = v1::ListImagesRequest { reference };
    let mut images = daemon.local.list_images(request).await?.into_inner().images;
    images.sort_by_key(|image| std::cmp::Reverse(image.created_at));
    let now = now();
    let rows: Vec<Row> = images.iter().flat_map(|image| rows(image, args.no_trunc, now)).collect();
    let list = if args.digests { &IMAGES_WITH_DIGESTS } else { &IMAGES };
    list.print(&args.format, &rows, &mut io::stdout().lock())
}

/// One row a reference, as docker's; an image without one has a row as well.
fn rows(image: &v1::Image, in_full: bool, now: Timestamp) -> Vec<Row> {
    let none = vec!["<none>".to_owned()];
    let references = if image.references.is_empty() { &none } else { &image.references };
    let bare = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    let created = Timestamp(image.created_at);
    let row = |reference: &String| {
        let (repository, tag) = split_tag(familiar(reference));
        let digest = image
            .digests
            .iter()
            .find_map(|digest| familiar(digest).strip_prefix(&format!("{repository}@")))
            .or_else(|| image.digests.first().and_then(|digest| digest.rsplit('@').next()));
        row_of(json!({
            "Repository": repository, "Tag": tag, "Digest": digest.unwrap_or("<none>"),
            "ID": if in_full { image.id.clone() } else { human::short(bare) },
            "CreatedSince": human::ago(now, created), "CreatedAt": created.to_string(),
            "Size": human::size(image.size_bytes),
        }))
    };
    references.iter().map(row).collect()
}

/// As people write it: `docker.io` and its `library` are understood.
fn familiar(reference: &str) -> &str {
    let name = reference.strip_prefix("docker.io/").unwrap_or(reference);
    let bare = name.strip_prefix("library/").filter(|rest| !rest.contains('/'));
    if name.len() == reference.len() { name } else { bare.unwrap_or(name) }
}

fn split_tag(reference: &str) -> (&str, &str) {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, "<none>"),
    }
}

async fn rm(daemon: &mut Daemon, args: &Rm) -> Result<(), CliError> {
    let mut failures = Failures::default();
    for name in &args.images {
        let request = v1::RemoveImageRequest { reference: name.clone(), force: args.force };
        let removed = daemon.local.remove_image(request).await.map_err(CliError::from);
        for line in failures.keep(removed).into_iter().flat_map(|done| done.into_inner().lines) {
            print_line(line)?;
        }
    }
    failures.finish()
}

const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks read ahead of what the daemon takes.
const CHUNKS_AHEAD: usize = 4;
/// More bars than any terminal has lines.
const LAYERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reference_has_a_row() {
        let image = v1::Image {
            id: "sha256:0123456789abcdef".into(),
            references: vec!["reg.local:5000/app:1".into(), "app".into()],
            digests: vec!["app@sha256:ff".into()],
            size_bytes: 4_260_000,
            ..v1::Image::default()
        };
        let rows = rows(&image, false, Timestamp(1_000));
        let of = |row: usize, name: &str| rows[row][name].as_str().unwrap().to_owned();
        assert_eq!((of(0, "Repository"), of(0, "Tag")), ("reg.local:5000/app".into(), "1".into()));
        assert_eq!((of(1, "Repository"), of(1, "Tag")), ("app".into(), "<none>".into()));
        assert_eq!((of(0, "ID"), of(0, "Size")), ("0123456789ab".into(), "4.26MB".into()));
        assert_eq!(of(1, "Digest"), "sha256:ff");
    }

    #[test]
    fn references_are_shown_as_people_write_them() {
        for (reference, shown) in [
            ("docker.io/library/nginx:1", "nginx:1"),
            ("docker.io/shoal/whoami:latest", "shoal/whoami:latest"),
            ("reg.local:5000/library/app:1", "reg.local:5000/library/app:1"),
            ("library/app", "library/app"),
        ] {
            assert_eq!(familiar(reference), shown);
        }
    }
}
