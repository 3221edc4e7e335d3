//! Images from registries.
//!
//! Owns: authentication, the choice of a platform, downloads that go on where they broke off,
//! retries and their bounds.
//! Does not know: how layers are unpacked.
//! Invariant: every byte that ends up in an image was checked against a digest that goes back to
//! the manifest asked for.

use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use oci_client::client::{BlobResponse, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth as ClientAuth;
use oci_client::{Client, Reference, RegistryOperation};
use ports::runtime::{ImageProgress, PullItem, RegistryAuth, RuntimeError};
use tokio::sync::mpsc;
use types::ImageName;

use super::login::{Registry, client_auth};
use super::manifest::{Descriptor, Manifest, ManifestIndex, architecture, choose_platform};
use super::reference::parse_name;
use super::store::ImageStore;
use super::unpack::{HashingReader, digest_of};
use super::{DOCUMENT_BYTES_MAX, ImageConfig, StoredImage, is_digest};
use crate::fail::{blocking, invalid, refused};

type Sender = mpsc::Sender<Result<PullItem, RuntimeError>>;

/// Pulls `reference` for this machine and records it.
pub(crate) async fn pull(
    store: &Arc<ImageStore>,
    reference: &str,
    auth: Option<RegistryAuth>,
    insecure: &[String],
    progress: &Sender,
) -> Result<StoredImage, RuntimeError> {
    let name = parse_name(reference)?;
    tell(progress, "manifest", "Pulling", 0, 0);
    let session = Arc::new(Session::open(&name, reference, auth, insecure).await?);
    session.authenticate().await?;
    let (manifest, digest) = session.manifest().await?;
    let config_bytes = session.document(&manifest.config).await?;
    let config = ImageConfig::parse(&config_bytes)?;
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(refused("pull the image", "manifest and configuration differ in layers"));
    }
    let pairs: Vec<_> =
        manifest.layers.iter().cloned().zip(config.rootfs.diff_ids.clone()).collect();
    let downloads = pairs.into_iter().map(|(layer, diff_id)| {
        let (session, store, progress) =
            (Arc::clone(&session), Arc::clone(store), progress.clone());
        async move { session.layer(store, layer, diff_id, progress).await }
    });
    let mut sizes = futures::stream::iter(downloads).buffer_unordered(LAYERS_AT_ONCE);
    let mut size_bytes = 0u64;
    while let Some(size) = sizes.next().await {
        size_bytes = size_bytes.saturating_add(size?);
    }
    drop(sizes);
    let image = StoredImage {
        id: digest_of(&config_bytes),
        references: name.tagged().into_iter().collect(),
        digests: vec![format!("{}@{digest}", name.repository())],
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        size_bytes,
        created_ms: config.created_ms(),
        config_json: String::from_utf8_lossy(&config_bytes).into_owned(),
        layers: config.rootfs.diff_ids,
    };
    let store = Arc::clone(store);
    blocking("record the image", move || store.add_image(image)).await
}

/// One repository of one registry.
struct Session {
    client: Client,
    reference: Reference,
    auth: ClientAuth,
    /// As the user wrote it, for messages.
    text: String,
}

impl Session {
    async fn open(
        name: &ImageName,
        text: &str,
        auth: Option<RegistryAuth>,
        insecure: &[String],
    ) -> Result<Self, RuntimeError> {
        let reference = client_reference(name);
        let registry = reference.resolve_registry().to_owned();
        let plain = is_loopback(&registry) || insecure.contains(&registry);
        // One provider in the process; whoever came first has installed the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let place = Registry { host: &registry, repository: reference.repository(), plain };
        let auth = client_auth(&place, auth).await?;
        let protocol = match plain {
            true => ClientProtocol::HttpsExcept(vec![registry]),
            false => ClientProtocol::Https,
        };
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_LIMIT),
            read_timeout: Some(STALL_LIMIT),
            user_agent: concat!("shoal/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        Ok(Self { client, reference, auth, text: text.to_owned() })
    }

    async fn authenticate(&self) -> Result<(), RuntimeError> {
        self.retry(|| async {
            self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await.map(drop)
        })
        .await
    }

    /// The manifest for this machine and the digest of the one that was asked for.
    async fn manifest(&self) -> Result<(Manifest, String), RuntimeError> {
        let (bytes, digest) = self.manifest_bytes(&self.reference).await?;
        if let Some(wanted) = self.reference.digest()
            && wanted != digest
        {
            return Err(refused("pull the image", format!("{wanted} has content {digest}")));
        }
        if is_index(&bytes) {
            let index: ManifestIndex = self.parse(&bytes)?;
            let chosen =
                choose_platform(&index.manifests).ok_or_else(|| RuntimeError::ImageMissing {
                    reference: self.text.clone(),
                    detail: format!(": it has no variant for linux/{}", architecture()),
                })?;
            let pinned = self.reference.clone_with_digest(chosen.digest.clone());
            let (bytes, actual) = self.manifest_bytes(&pinned).await?;
            if actual != chosen.digest {
                let problem = format!("{} has content {actual}", chosen.digest);
                return Err(refused("pull the image", problem));
            }
            return Ok((self.parse(&bytes)?, digest));
        }
        Ok((self.parse(&bytes)?, digest))
    }

    async fn manifest_bytes(&self, reference: &Reference) -> Result<(Bytes, String), RuntimeError> {
        let bytes = self
            .retry(|| async {
                let pulled = self.client.pull_manifest_raw(reference, &self.auth, MANIFEST_TYPES);
                pulled.await.map(|(bytes, _)| bytes)
            })
            .await?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(refused("pull the image", "its manifest is too large"));
        }
        let digest = digest_of(&bytes);
        Ok((bytes, digest))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, RuntimeError> {
        serde_json::from_slice(bytes)
            .map_err(|error| refused("pull the image", format!("its manifest: {error}")))
    }

    /// A small blob, checked.
    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RuntimeError> {
        check_descriptor(descriptor)?;
        let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS_MAX);
        let collect = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = receiver.recv().await {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
                    break;
                }
            }
            bytes
        };
        let (downloaded, bytes) =
            futures::join!(self.download(descriptor, sender, |_| ()), collect);
        downloaded?;
        let actual = digest_of(&bytes);
        if actual != descriptor.digest {
            let problem = format!("{} has content {actual}", descriptor.digest);
            return Err(refused("pull the image", problem));
        }
        Ok(bytes)
    }

    /// Downloads and unpacks one layer, unless it is there. Answers its size.
    async fn layer(
        self: Arc<Self>,
        store: Arc<ImageStore>,
        layer: Descriptor,
        diff_id: String,
        progress: Sender,
    ) -> Result<u64, RuntimeError> {
        check_descriptor(&layer)?;
        let short: String = layer.digest["sha256:".len()..].chars().take(12).collect();
        let _turn = store.layer_turn(&diff_id).await;
        if let Some(size) = store.layer_size(&diff_id) {
            tell(&progress, &short, "Already exists", layer.size, layer.size);
            return Ok(size);
        }
        let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
        let wanted = layer.digest.clone();
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut reader = HashingReader::new(ChunkReader { receiver, chunk: Bytes::new() });
            // The digest is known only when all was read, and the store asks before it commits.
            let digest = std::cell::RefCell::new(None);
            let mut shared = SharedReader { reader: &mut reader, digest: &digest };
            store.add_layer(&diff_id, &mut shared, || match digest.borrow().as_deref() {
                Some(actual) if actual == wanted => Ok(()),
                Some(actual) => {
                    Err(refused("pull the image", format!("{wanted} has content {actual}")))
                }
                None => Err(refused("pull the image", format!("{wanted} was not read to its end"))),
            })
        });
        let total = layer.size;
        let download = self.download(&layer, sender, |current| {
            tell(&progress, &short, "Downloading", current, total);
        });
        let (downloaded, unpacked) = futures::join!(download, unpacked);
        let unpacked =
            unpacked.map_err(|_| refused("unpack a layer", "the unpacking task ended"))?;
        // When unpacking fails the download breaks off too, but the former is the reason.
        match (downloaded, unpacked) {
            (Ok(()), result) => {
                if result.is_ok() {
                    tell(&progress, &short, "Pull complete", total, total);
                }
                result
            }
            (Err(Download::ReceiverGone), Err(error)) => Err(error),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Sends a blob in pieces; after an interruption it goes on where it was.
    async fn download(
        &self,
        descriptor: &Descriptor,
        sender: mpsc::Sender<Bytes>,
        progress: impl Fn(u64),
    ) -> Result<(), Download> {
        let mut offset = 0u64;
        let mut failures = 0u32;
        loop {
            let before = offset;
            match self.download_once(descriptor, &sender, &mut offset, &progress).await {
                Ok(()) => return Ok(()),
                Err(Download::Broken(error)) => {
                    failures = if offset > before { 1 } else { failures + 1 };
                    if failures > RETRIES_MAX || is_final(&error) {
                        return Err(Download::Failed(self.explain(&error)));
                    }
                    tokio::time::sleep(backoff(failures)).await;
                }
                Err(other) => return Err(other),
            }
        }
    }

    async fn download_once(
        &self,
        descriptor: &Descriptor,
        sender: &mpsc::Sender<Bytes>,
        offset: &mut u64,
        progress: &impl Fn(u64),
    ) -> Result<(), Download> {
        let blob = OciDescriptor { digest: descriptor.digest.clone(), ..OciDescriptor::default() };
        let response = self
            .client
            .pull_blob_stream_partial(&self.reference, &blob, *offset, None)
            .await
            .map_err(Download::Broken)?;
        // A registry without ranges sends everything again.
        let (mut stream, mut skip) = match response {
            BlobResponse::Partial(stream) => (stream.stream, 0),
            BlobResponse::Full(stream) => (stream.stream, *offset),
        };
        loop {
            let next = tokio::time::timeout(STALL_LIMIT, stream.next()).await;
            let next = next.map_err(|_| Download::Broken(io::ErrorKind::TimedOut.into_error()))?;
            let Some(chunk) = next else { break };
            let mut chunk = chunk.map_err(|error| Download::Broken(error.into()))?;
            let drop_now = skip.min(chunk.len() as u64);
            chunk.advance(drop_now as usize);
            skip -= drop_now;
            if chunk.is_empty() {
                continue;
            }
            let length = chunk.len() as u64;
            if sender.send(chunk).await.is_err() {
                return Err(Download::ReceiverGone);
            }
            *offset += length;
            progress(*offset);
        }
        if descriptor.size > 0 && *offset < descriptor.size {
            return Err(Download::Broken(io::ErrorKind::UnexpectedEof.into_error()));
        }
        Ok(())
    }

    async fn retry<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, RuntimeError>
    where
        F: Future<Output = Result<T, OciDistributionError>>,
    {
        let mut failures = 0;
        loop {
            let result = tokio::time::timeout(REQUEST_LIMIT, attempt()).await;
            let result = result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into_error()));
            match result {
                Ok(value) => return Ok(value),
                Err(error) => {
                    failures += 1;
                    if failures > RETRIES_MAX || is_final(&error) {
                        return Err(self.explain(&error));
                    }
                    tokio::time::sleep(backoff(failures)).await;
                }
            }
        }
    }

    fn explain(&self, error: &OciDistributionError) -> RuntimeError {
        let words = base::chain(error).to_string();
        if is_missing(error) {
            let registry = self.reference.resolve_registry();
            return RuntimeError::ImageMissing {
                reference: self.text.clone(),
                detail: format!(": the registry {registry} does not have it"),
            };
        }
        if is_denied(error) {
            return RuntimeError::ImageMissing {
                reference: self.text.clone(),
                detail: format!(": access denied or it does not exist, log in first ({words})"),
            };
        }
        refused("pull the image", format!("{}: {words}", self.text))
    }
}

/// How a download can end early.
enum Download {
    /// The connection or the registry; worth another try.
    Broken(OciDistributionError),
    /// No more tries.
    Failed(RuntimeError),
    /// Whoever takes the bytes has stopped.
    ReceiverGone,
}

impl From<Download> for RuntimeError {
    fn from(download: Download) -> Self {
        match download {
            Download::Failed(error) => error,
            Download::Broken(error) => refused("pull the image", base::chain(&error).to_string()),
            Download::ReceiverGone => refused("pull the image", "unpacking stopped"),
        }
    }
}

/// Bytes that arrive in pieces, for blocking code.
struct ChunkReader {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Leaves the digest where it can be seen once the end has been read.
struct SharedReader<'a, R> {
    reader: &'a mut HashingReader<R>,
    digest: &'a std::cell::RefCell<Option<String>>,
}

impl<R: Read> Read for SharedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            *self.digest.borrow_mut() = Some(self.reader.current());
        }
        Ok(count)
    }
}

trait IntoError {
    fn into_error(self) -> OciDistributionError;
}

impl IntoError for io::ErrorKind {
    fn into_error(self) -> OciDistributionError {
        OciDistributionError::IoError(self.into())
    }
}

fn check_descriptor(descriptor: &Descriptor) -> Result<(), RuntimeError> {
    if is_digest(&descriptor.digest) {
        return Ok(());
    }
    Err(invalid("image manifest", format!("{:?} is not a sha256 digest", descriptor.digest)))
}

fn is_index(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes)
        .is_ok_and(|value| value.get("manifests").is_some())
}

fn is_missing(error: &OciDistributionError) -> bool {
    use OciErrorCode::{BlobUnknown, ManifestUnknown, NameUnknown, NotFound};
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|e| matches!(e.code, ManifestUnknown | NameUnknown | NotFound | BlobUnknown)),
        OciDistributionError::ServerError { code, .. } => *code == 404,
        _ => false,
    }
}

fn is_denied(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => envelope
            .errors
            .iter()
            .any(|e| matches!(e.code, OciErrorCode::Unauthorized | OciErrorCode::Denied)),
        OciDistributionError::ServerError { code, .. } => matches!(code, 401 | 403),
        _ => false,
    }
}

/// Another try would give the same answer.
fn is_final(error: &OciDistributionError) -> bool {
    is_missing(error)
        || is_denied(error)
        || match error {
            OciDistributionError::ServerError { code, .. } => {
                (400..500).contains(code) && !matches!(code, 408 | 429)
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                !envelope.errors.iter().any(|e| matches!(e.code, OciErrorCode::Toomanyrequests))
            }
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => false,
            _ => true,
        }
}

/// The form the registry client wants.
fn client_reference(name: &ImageName) -> Reference {
    let (registry, path) = (name.registry.clone(), name.path.clone());
    match (&name.digest, &name.tag) {
        (Some(digest), _) => Reference::with_digest(registry, path, digest.clone()),
        (None, tag) => Reference::with_tag(registry, path, tag.clone().unwrap_or_default()),
    }
}

/// `localhost`, 127.0.0.0/8 and ::1, with or without a port.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Doubles, up to ten seconds, with up to a quarter on top so that nodes do not move in step.
fn backoff(failures: u32) -> Duration {
    let base = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(BACKOFF_MAX);
    let noise = crate::now_ms().wrapping_mul(0x9E37_79B9) % 1_000;
    base + base.mul_f64(noise as f64 / 4_000.0)
}

/// A full channel loses a step, which the next one makes up for.
fn tell(progress: &Sender, id: &str, status: &str, current: u64, total: u64) {
    let item = ImageProgress { id: id.to_owned(), status: status.to_owned(), current, total };
    let _ = progress.try_send(Ok(PullItem::Progress(item)));
}

const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Docker's number.
const LAYERS_AT_ONCE: usize = 3;

/// Pieces between download and unpacking; some hundred kilobytes.
const CHUNKS_MAX: usize = 16;

/// Tries without any progress.
const RETRIES_MAX: u32 = 5;
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

const CONNECT_LIMIT: Duration = Duration::from_secs(15);
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Without a byte.
const STALL_LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for (registry, expected) in [
            ("localhost:5000", true),
            ("localhost", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("127.0.0.1.example.com", false),
            ("registry.example.com:5000", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(registry), expected, "{registry}");
        }
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let waits: Vec<Duration> = (1..=20).map(backoff).collect();
        assert!(waits[0] >= BACKOFF_MIN && waits[0] < BACKOFF_MIN * 2);
        assert!(waits[19] <= BACKOFF_MAX.mul_f64(1.25));
    }
}
