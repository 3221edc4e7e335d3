//! Names and choices as tables; links, routes and rules in namespaces of their own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::*;

fn wanted(id: &str) -> ContainerNetwork {
    ContainerNetwork { id: id.to_owned(), ..ContainerNetwork::default() }
}

fn route(text: &str) -> Route {
    Route { destination: text.parse().unwrap(), link: 1 }
}

#[test]
fn a_subnet_without_routes_is_chosen() {
    let first = CANDIDATES[0];
    let second = CANDIDATES[1];
    for (own, routes, chosen) in [
        (vec![], vec![], first),
        (vec![], vec!["0.0.0.0/0", "10.0.0.0/24"], first),
        (vec![], vec!["172.30.0.0/16"], second),
        (vec![], vec!["172.30.241.7/32"], second),
        (vec!["172.29.240.5"], vec!["172.29.240.5/32"], second),
    ] {
        let own: Vec<Ipv4Addr> = own.iter().map(|a| a.parse().unwrap()).collect();
        let routes: Vec<Route> = routes.iter().map(|text| route(text)).collect();
        assert_eq!(choose_subnet(&own, &routes), chosen.parse().ok(), "{routes:?}");
    }
    let all: Vec<Route> = ["0.0.0.0/1", "128.0.0.0/1"].iter().map(|text| route(text)).collect();
    assert_eq!(choose_subnet(&[], &all), None);
}

#[test]
fn addresses_are_given_once() {
    let subnet = "10.0.0.0/30".parse().unwrap();
    assert_eq!(free_address(subnet, &[]), "10.0.0.1".parse().ok());
    assert_eq!(free_address(subnet, &[route("10.0.0.1/32")]), "10.0.0.2".parse().ok());
    let full = [route("10.0.0.1/32"), route("10.0.0.2/32")];
    assert_eq!(free_address(subnet, &full), None);
    assert_eq!(free_address(subnet, &[route("10.0.0.0/30")]), "10.0.0.1".parse().ok());
}

#[test]
fn names_carry_the_instance_and_fit() {
    let (a, b) = (names("node-a").unwrap(), names("node-b").unwrap());
    assert_ne!(a.link_prefix, b.link_prefix);
    assert_eq!(a.link_prefix.len(), 6);
    let name = link_name(&a.link_prefix, "0123456789abcdefghijklmno");
    assert_eq!(name.len(), 15);
    for bad in ["", "a/b", "a b", &"x".repeat(33)] {
        assert!(names(bad).is_err(), "{bad:?}");
    }
}

/// Runs `test` in a network namespace of its own that has an uplink: `eth0` with 192.0.2.2, and
/// beyond it, in a second namespace, 192.0.2.1.
fn on_host(test: impl AsyncFnOnce(Beyond) + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let host = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let beyond = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut socket = RouteSocket::open().unwrap();
            socket.add_pair("uplink", [2, 0, 0, 0, 0, 1], &host.into()).unwrap();
            let link = index(&mut socket, "uplink");
            socket.add_address(link, "192.0.2.1".parse().unwrap()).unwrap();
            socket.set_up(link).unwrap();
            socket.add_host_route(link, "192.0.2.2".parse().unwrap()).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let mut socket = RouteSocket::open().unwrap();
        let link = index(&mut socket, TASK_LINK);
        socket.add_address(link, "192.0.2.2".parse().unwrap()).unwrap();
        socket.set_up(link).unwrap();
        socket.add_host_route(link, "192.0.2.1".parse().unwrap()).unwrap();
        socket.add_default_route(link, "192.0.2.1".parse().unwrap()).unwrap();
        // Blocking threads must be in this namespace too: they are made by this one.
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test(Beyond(beyond)));
    })
    .join()
    .unwrap();
}

fn index(socket: &mut RouteSocket, name: &str) -> u32 {
    socket.links().unwrap().into_iter().find(|link| link.name == name).unwrap().index
}

/// The namespace beyond the uplink.
struct Beyond(std::fs::File);

impl Beyond {
    /// Answers one connection with the address it comes from.
    fn serve(&self) -> std::thread::JoinHandle<()> {
        let namespace = self.0.try_clone().unwrap();
        let (ready, wait) = std::sync::mpsc::sync_channel(1);
        let server = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let listener = TcpListener::bind("192.0.2.1:80").unwrap();
            ready.send(()).unwrap();
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
        });
        wait.recv().unwrap();
        server
    }
}

/// Connects from a task and reads to the end.
fn ask(task: PathBuf, to: &'static str) -> io::Result<String> {
    std::thread::spawn(move || {
        setns(std::fs::File::open(task)?, CloneFlags::CLONE_NEWNET)?;
        let to = to.parse().map_err(io::Error::other)?;
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .join()
    .unwrap()
}

async fn open(dir: &tempfile::TempDir, instance: &str) -> TaskNetwork {
    let options = NetworkOptions {
        run_dir: dir.path().to_owned(),
        instance_id: instance.into(),
        subnet: None,
    };
    TaskNetwork::open(options).await.unwrap()
}

fn addresses_of(network: &TaskNetwork) -> Vec<Ipv4Addr> {
    own_addresses(&mut network.inner.socket(), &network.inner.names).unwrap()
}

#[test]
fn tasks_reach_the_world_with_the_hosts_address() {
    on_host(async |beyond| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir, "a").await;
        let path = network.attach(&wanted("task1")).await.unwrap().netns;
        assert_eq!(path, network.attach(&wanted("task1")).await.unwrap().netns);
        let server = beyond.serve();
        assert_eq!(ask(path.clone(), "192.0.2.1:80").unwrap(), "192.0.2.2");
        server.join().unwrap();

        // Tasks of one node see each other's own addresses; each has its loopback.
        let other = network.attach(&wanted("task2")).await.unwrap().netns;
        let addresses = addresses_of(&network);
        assert_eq!(addresses.len(), 2);
        let (target, port) = (other.clone(), 8080);
        let (ready, wait) = std::sync::mpsc::sync_channel(1);
        let server = std::thread::spawn(move || {
            setns(std::fs::File::open(target).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            ready.send(()).unwrap();
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
        });
        wait.recv().unwrap();
        let to: &'static str = Box::leak(format!("{}:{port}", addresses[1]).into_boxed_str());
        assert_eq!(ask(path, to).unwrap(), addresses[0].to_string());
        server.join().unwrap();
        network.remove_all().await.unwrap();
    });
}

#[test]
fn it_is_a_network() {
    on_host(async |_| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir, "suite").await;
        testkit::conformance::network::check(&network).await;
        network.remove_all().await.unwrap();
    });
}

#[test]
fn a_new_daemon_keeps_and_repairs() {
    on_host(async |beyond| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir, "a").await;
        let kept = network.attach(&wanted("kept")).await.unwrap().netns;
        network.attach(&wanted("gone")).await.unwrap().netns;
        let before = addresses_of(&network);
        drop(network);

        let network = open(&dir, "a").await;
        assert_eq!(network.observe().await.unwrap(), ["gone", "kept"]);
        assert_eq!(addresses_of(&network), before);
        // A hand removes the rule, the forwarding and a link.
        filter::remove(&network.inner.names.table).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let alias = network.inner.alias("kept");
        let links = network.inner.socket().links().unwrap();
        let link = links.iter().find(|link| link.alias == alias).unwrap().index;
        network.inner.socket().delete_link(link).unwrap();
        assert_eq!(network.attach(&wanted("kept")).await.unwrap().netns, kept);
        let server = beyond.serve();
        assert_eq!(ask(kept, "192.0.2.1:80").unwrap(), "192.0.2.2");
        server.join().unwrap();
        network.remove_all().await.unwrap();
    });
}

#[test]
fn removal_leaves_nothing_and_spares_others() {
    on_host(async |_beyond| {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (open(&one, "a").await, open(&two, "b").await);
        let (first, second) = (
            a.attach(&wanted("same")).await.unwrap().netns,
            b.attach(&wanted("same")).await.unwrap().netns,
        );
        assert_ne!(addresses_of(&a), addresses_of(&b), "no address is given twice");
        a.detach("same").await.unwrap();
        a.detach("same").await.unwrap();
        assert!(!first.exists());
        assert!(addresses_of(&a).is_empty());
        assert_eq!(b.observe().await.unwrap(), ["same"]);
        a.remove_all().await.unwrap();
        assert!(!filter::exists("shoal-a").unwrap());
        assert!(filter::exists("shoal-b").unwrap());
        assert!(second.exists());
        b.remove_all().await.unwrap();
        let links = RouteSocket::open().unwrap().links().unwrap();
        let mut names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["eth0", "lo"]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(one.path().to_str().unwrap()));
    });
}

#[test]
fn a_link_without_a_namespace_is_removed() {
    on_host(async |_beyond| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir, "a").await;
        let path = network.attach(&wanted("lost")).await.unwrap().netns;
        // A process holds the namespace, its mount is gone: a crash half-way through a removal.
        let held = std::fs::File::open(&path).unwrap();
        network.inner.namespaces.remove("lost").unwrap();
        assert_eq!(addresses_of(&network).len(), 1);
        assert!(network.observe().await.unwrap().is_empty());
        assert!(addresses_of(&network).is_empty());
        drop(held);
        network.remove_all().await.unwrap();
    });
}

#[test]
fn removal_reaches_the_mount_namespaces_of_shims() {
    on_host(async |_beyond| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir, "a").await;
        let path = network.attach(&wanted("task")).await.unwrap().netns;
        let (ready, wait) = std::sync::mpsc::sync_channel(0);
        let (go, gone) = std::sync::mpsc::sync_channel(0);
        let shim = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let (none, slave) = (None::<&str>, nix::mount::MsFlags::MS_SLAVE);
            let flags = nix::mount::MsFlags::MS_REC | slave;
            nix::mount::mount(none, "/", none, flags, none).unwrap();
            let seen = || {
                let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                mounts.contains(path.to_str().unwrap())
            };
            let before = seen();
            ready.send(()).unwrap();
            gone.recv().unwrap();
            (before, seen())
        });
        wait.recv().unwrap();
        network.detach("task").await.unwrap();
        go.send(()).unwrap();
        assert_eq!(shim.join().unwrap(), (true, false));
        network.remove_all().await.unwrap();
    });
}

#[test]
fn many_tasks_are_attached_and_removed() {
    on_host(async |_beyond| {
        let dir = tempfile::tempdir().unwrap();
        let network = open(&dir, "a").await;
        let begin = std::time::Instant::now();
        for number in 0..40 {
            network.attach(&wanted(&format!("task{number}"))).await.unwrap();
        }
        let attached = begin.elapsed();
        let mut addresses = addresses_of(&network);
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 40);
        // All at once, as the removal of a service does it.
        let leaving: Vec<_> = (0..40)
            .map(|number| {
                let network = network.clone();
                tokio::spawn(async move { network.detach(&format!("task{number}")).await })
            })
            .collect();
        for task in leaving {
            task.await.unwrap().unwrap();
        }
        println!("40 tasks: {attached:?} to attach, {:?} in all", begin.elapsed());
        assert!(network.observe().await.unwrap().is_empty());
        network.remove_all().await.unwrap();
    });
}
