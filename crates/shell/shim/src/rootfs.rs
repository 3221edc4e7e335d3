//! The container's root filesystem as seen from outside it.
//!
//! Owns: the overlay mount, safe paths below a root, the working directory, users and groups.
//! Does not know: how layers got there.
//! Invariant: no path is followed out of the root, whatever links the image holds: every lookup
//! below a root is one `openat2` with RESOLVE_IN_ROOT.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};

/// Leaves the daemon's mount namespace, so that what is mounted from now on is gone with this
/// process. Unmounts of the daemon still arrive here.
pub(crate) fn leave_mount_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    Ok(())
}

/// Mounts `layers` (relative to `layers_dir`, lowest first) with an upper directory below `dir` on
/// `dir/rootfs`. Nothing of it is reused after a crash, hence `volatile`.
pub(crate) fn mount_overlay(
    layers_dir: &Path,
    layers: &[String],
    dir: &Path,
) -> io::Result<PathBuf> {
    std::env::set_current_dir(layers_dir)?;
    let rootfs = dir.join(crate::files::ROOTFS);
    let lower: Vec<&str> = layers.iter().rev().map(String::as_str).collect();
    let upper = dir.join("upper");
    let work = dir.join("work");
    let data = |options: &str| {
        format!(
            "lowerdir={},upperdir={},workdir={}{options}",
            lower.join(":"),
            upper.display(),
            work.display()
        )
    };
    let attempt = |options: &str| {
        let data = data(options);
        mount(Some("overlay"), &rootfs, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
    };
    let result = match attempt(",volatile") {
        // Kernels before 5.10.
        Err(nix::Error::EINVAL) => attempt(""),
        other => other,
    };
    std::env::set_current_dir("/")?;
    result?;
    Ok(rootfs)
}

/// A directory that lookups do not leave.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    /// Opens `path` below the root; links are resolved as if the root were `/`.
    pub fn open_at(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // EAGAIN: a rename elsewhere made the kernel give up; a bounded number of tries.
        for _ in 0..RETRIES_MAX {
            match openat2(&self.0, relative, how) {
                Err(nix::Error::EAGAIN) => {}
                other => return Ok(other?),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Opens the directory `path`, making what is missing, mode 0755, owner root.
    pub fn open_or_make_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open_at(path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut walked = PathBuf::new();
        let mut parent = self.open_at(Path::new("."), flags)?;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(io::Error::other("a path with `..`"));
                }
            };
            walked.push(name);
            parent = match self.open_at(&walked, flags) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(nix::Error::EEXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    self.open_at(&walked, flags)?
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    /// A small text file below the root; `None` when it is not there.
    pub fn read_text(&self, path: &Path) -> io::Result<Option<String>> {
        let file = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(file) => File::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Numbers of the user that a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// The name or number given cannot be turned into numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Use a number, or a name that the image's /etc/passwd has.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// Use a number, or a name that the image's /etc/group has.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// Numbers lie between 0 and 2147483647.
    #[error("user or group number {0} is out of range (0 to 2147483647)")]
    Range(String),
}

/// Resolves `user` (`name|uid[:group|gid]`, empty: root) and supplementary `groups` with the texts
/// of an image's passwd and group files.
pub fn resolve_user(
    user: &str,
    groups: &[String],
    passwd: &str,
    group: &str,
) -> Result<User, UserError> {
    let (name, primary) = user.split_once(':').unwrap_or((user, ""));
    let name = if name.is_empty() { "0" } else { name };
    let number = parse_number(name)?;
    let entry = passwd
        .lines()
        .filter_map(parse_passwd)
        .find(|entry| entry.name == name || number.is_some_and(|number| entry.uid == number));
    let mut resolved = match (&entry, number) {
        (Some(entry), _) => User { uid: entry.uid, gid: entry.gid, groups: Vec::new() },
        (None, Some(uid)) => User { uid, gid: 0, groups: Vec::new() },
        (None, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    if primary.is_empty() {
        if let Some(entry) = &entry {
            let member = |line: &GroupLine<'_>| line.members.split(',').any(|m| m == entry.name);
            resolved.groups =
                group.lines().filter_map(parse_group).filter(member).map(|g| g.gid).collect();
        }
    } else {
        resolved.gid = find_group(primary, group)?;
    }
    for extra in groups {
        resolved.groups.push(find_group(extra, group)?);
    }
    resolved.groups.sort_unstable();
    resolved.groups.dedup();
    Ok(resolved)
}

struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn parse_passwd(line: &str) -> Option<PasswdLine<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let uid = fields.nth(1)?.parse().ok()?;
    Some(PasswdLine { name, uid, gid: fields.next()?.parse().ok()? })
}

fn parse_group(line: &str) -> Option<GroupLine<'_>> {
    let mut fields = line.trim().split(':');
    let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some(GroupLine { name, gid, members: fields.next().unwrap_or_default() })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    let number = parse_number(wanted)?;
    group
        .lines()
        .filter_map(parse_group)
        .find(|line| line.name == wanted)
        .map(|line| line.gid)
        .or(number)
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

/// `None` for a name.
fn parse_number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(number) if number <= i32::MAX as u32 => Ok(Some(number)),
        _ => Err(UserError::Range(text.to_owned())),
    }
}

/// Longest passwd or group file that is read.
const TEXT_BYTES_MAX: u64 = 4 * 1024 * 1024;

const RETRIES_MAX: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                          # comment\n\
                          www-data:x:33:33::/var/www:/bin/false\n\
                          app:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str =
        "root:x:0:\nwww-data:x:33:\napp:x:1001:\nvideo:x:44:app,www-data\naudio:x:29:app\n";

    #[test]
    fn users_are_resolved_as_docker_does() {
        let user = |uid, gid, groups: &[u32]| Ok(User { uid, gid, groups: groups.to_vec() });
        let cases: Vec<(&str, &[&str], Result<User, UserError>)> = vec![
            ("", &[], user(0, 0, &[])),
            ("app", &[], user(1000, 1001, &[29, 44])),
            ("1000", &[], user(1000, 1001, &[29, 44])),
            ("app:video", &[], user(1000, 44, &[])),
            ("4242", &[], user(4242, 0, &[])),
            ("4242:77", &["audio", "5"], user(4242, 77, &[5, 29])),
            (":33", &[], user(0, 33, &[])),
            ("nobody", &[], Err(UserError::NoUser("nobody".into()))),
            ("app:none", &[], Err(UserError::NoGroup("none".into()))),
            ("app", &["none"], Err(UserError::NoGroup("none".into()))),
            ("2147483648", &[], Err(UserError::Range("2147483648".into()))),
        ];
        for (text, groups, expected) in cases {
            let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
            assert_eq!(resolve_user(text, &groups, PASSWD, GROUP), expected, "{text}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let dir = std::env::temp_dir().join(format!("shoal-root-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../../../etc/passwd", dir.join("inside/up")).unwrap();
        let root = Root::open(&dir).unwrap();
        assert_eq!(root.read_text(Path::new("link/passwd")).unwrap(), None);
        assert_eq!(root.read_text(Path::new("/inside/up")).unwrap(), None);
        root.open_or_make_dir(Path::new("/inside/a/b")).unwrap();
        assert!(dir.join("inside/a/b").is_dir());
        assert!(root.open_or_make_dir(Path::new("/link/evil")).is_err());
        assert!(!Path::new("/etc/evil").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
