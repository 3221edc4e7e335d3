//! One host with an uplink: the way out, and what a daemon leaves to the next one.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use ports::network::{ContainerNetwork, Network};
use types::{DirectoryUpdate, NetworkId};

use super::lab::*;
use crate::DataPath;
use crate::namespace::enter;
use crate::nft::table::NftSocket;
use crate::route::{Link, RouteSocket};

fn plain(id: &str) -> ContainerNetwork {
    ContainerNetwork { id: id.to_owned(), hostname: id.to_owned(), ..ContainerNetwork::default() }
}

/// Answers one connection with the address it comes from, beyond the uplink.
fn serve(lab: &Lab) -> JoinHandle<()> {
    let namespace = lab.client.try_clone().unwrap();
    let (ready, wait) = std::sync::mpsc::sync_channel(1);
    let server = std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind("192.0.2.100:80").unwrap();
        ready.send(()).unwrap();
        let (mut stream, peer) = listener.accept().unwrap();
        writeln!(stream, "{}", peer.ip()).unwrap();
    });
    wait.recv().unwrap();
    server
}

/// A container reaches the world, with the host's address.
fn reaches_the_world(lab: &Lab, netns: &std::path::Path) {
    let server = serve(lab);
    let beyond = "192.0.2.100".parse().unwrap();
    assert_eq!(ask(&namespace_of(netns), (beyond, 80)).unwrap(), "192.0.2.11");
    server.join().unwrap();
}

fn addresses_of(path: &DataPath) -> BTreeSet<Ipv4Addr> {
    let node = path.inner.node();
    let ends = node.planner.containers().values().flat_map(|container| &container.links);
    ends.filter_map(|end| end.v4).collect()
}

#[test]
fn tasks_reach_the_world_with_the_hosts_address_and_not_each_other() {
    in_lab(1, async |lab| {
        let path = &lab.hosts[0].path;
        let attached = path.attach(&plain("task1")).await.unwrap();
        assert_eq!(path.attach(&plain("task1")).await.unwrap(), attached);
        reaches_the_world(lab, &attached.netns);
        let own = addresses_of(path).into_iter().next().unwrap();
        assert_eq!(attached.hosts[0], (own.into(), "task1".to_owned()));
        assert!(attached.hosts[1].0.is_ipv6() && attached.hosts.len() == 2);

        // Tasks of one node have no business with each other's mesh addresses.
        let other = path.attach(&plain("task2")).await.unwrap();
        assert_eq!(addresses_of(path).len(), 2);
        let _server = Server::start(&other.netns, "task2", 8080);
        let to = other.hosts[0].0;
        let begin = std::time::Instant::now();
        assert!(ask(&namespace_of(&attached.netns), (to, 8080)).is_err());
        assert!(begin.elapsed().as_secs() < 2, "refused, not left waiting");
        let loopback = Ipv4Addr::LOCALHOST.into();
        let itself = ask(&namespace_of(&other.netns), (loopback, 8080)).unwrap();
        assert_eq!(itself, "task2 127.0.0.1");
    });
}

#[test]
fn it_is_a_network() {
    in_lab(1, async |lab| {
        testkit::conformance::network::check(&lab.hosts[0].path).await;
    });
}

#[test]
fn a_new_daemon_keeps_and_repairs() {
    in_lab(1, async |lab| {
        let path = lab.hosts[0].path.clone();
        let kept = path.attach(&plain("kept")).await.unwrap();
        path.attach(&plain("gone")).await.unwrap();
        let before = addresses_of(&path);
        let options = || host_options(lab.hosts[0].dir.path(), "h1", None);
        drop(path);

        let path = open_in(&lab.hosts[0].namespace, options()).await;
        assert_eq!(path.observe().await.unwrap(), ["gone", "kept"]);
        assert_eq!(addresses_of(&path), before);
        reaches_the_world(lab, &kept.netns);
        // A hand removes the table, the forwarding and a link.
        let table = path.inner.node().names.table.clone();
        enter(&lab.hosts[0].namespace, move || {
            NftSocket::open()?.remove(crate::nft::INET, &table)?;
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")
        })
        .unwrap();
        let mesh = namespace_of(&lab.hosts[0].dir.path().join("sandboxes/mesh"));
        let link = path.inner.node().planner.containers()["kept"].links[0].link.clone();
        run_in(&mesh, &format!("ip link del {link}"));
        assert_eq!(path.attach(&plain("kept")).await.unwrap(), kept);
        assert!(path.repair().await.unwrap() > 0);
        reaches_the_world(lab, &kept.netns);
    });
}

/// A container has the links to these networks, in their order, reaches `far` there with its own
/// addresses, and the world besides.
fn is_connected(lab: &Lab, netns: &std::path::Path, networks: &[u8], number: u8) {
    let inside = namespace_of(netns);
    for network in networks {
        let answer = ask(&inside, (v4(*network, 100), 80)).unwrap();
        assert_eq!(answer, format!("far {}", v4(*network, number)));
        let answer = ask(&inside, (v6(*network, 100), 80)).unwrap();
        assert_eq!(answer, format!("far {}", v6(*network, u16::from(number))));
    }
    reaches_the_world(lab, netns);
    let links = enter(&inside, || RouteSocket::open()?.links()).unwrap();
    let mut seen: Vec<_> = links.iter().map(|link| (link.name.clone(), link.mtu)).collect();
    seen.retain(|(name, _)| name != "lo");
    seen.sort();
    let mtu = |at: usize| if at < networks.len() { 1450 } else { 1500 };
    let expected = (0..=networks.len()).map(|at| (format!("eth{at}"), mtu(at)));
    assert_eq!(seen, expected.collect::<Vec<_>>());
}

/// Of those that follow others on the same networks the links were made before.
#[test]
fn containers_that_follow_each_other_are_connected_alike() {
    in_lab(2, async |lab| {
        let rows: [&[u8]; 4] = [&[1], &[2, 1], &[1, 2], &[]];
        let number = |row: usize, at: usize| (10 + 10 * row + at) as u8;
        for network in [1, 2] {
            lab.add_network(network);
            lab.add_task(network, 1, 100, None);
            lab.add_task(network, 0, 90, None);
            for (row, _) in rows.iter().enumerate().filter(|(_, all)| all.contains(&network)) {
                (0..4).for_each(|at| lab.add_task(network, 0, number(row, at), None));
            }
        }
        lab.tell_all().await;
        let far = lab.attach(1, &wanted("far", &[1, 2], 100)).await;
        let _far = Server::start(&far.netns, "far", 80);
        let path = lab.hosts[0].path.clone();
        for (row, networks) in rows.iter().enumerate() {
            for at in 0..4 {
                let (name, number) = (format!("c{row}{at}"), number(row, at));
                let one = lab.attach(0, &wanted(&name, networks, number)).await;
                is_connected(lab, &one.netns, networks, number);
                assert_eq!(path.repair().await.unwrap(), 0, "after {name}");
                // Asked for again it keeps its links, whoever chose what they are like.
                let plan = || path.inner.node().planner.containers()[&name].clone();
                let before = plan();
                lab.attach(0, &wanted(&name, networks, number)).await;
                assert_eq!(plan(), before);
                // The next one finds what is made meanwhile.
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
        // A network goes, with what was made for it, and comes back.
        let gone =
            DirectoryUpdate { removed_networks: vec![id(1001)], ..DirectoryUpdate::default() };
        path.update(gone).await.unwrap();
        lab.tell_all().await;
        let last = lab.attach(0, &wanted("last", &[1, 2], 90)).await;
        is_connected(lab, &last.netns, &[1, 2], 90);
        for id in path.observe().await.unwrap() {
            path.detach(&id).await.unwrap();
        }
    });
}

/// On the network, in the mesh, or both.
#[test]
fn a_link_that_was_made_before_and_went_is_laid_anew() {
    in_lab(2, async |lab| {
        lab.add_network(1);
        lab.add_task(1, 1, 100, None);
        (10..20).for_each(|number| lab.add_task(1, 0, number, None));
        lab.tell_all().await;
        let far = lab.attach(1, &wanted("far", &[1], 100)).await;
        let _far = Server::start(&far.netns, "far", 80);
        let path = lab.hosts[0].path.clone();
        let sandboxes = lab.hosts[0].dir.path().join("sandboxes");
        let places = [id::<NetworkId>(1001).to_string(), "mesh".to_owned()];
        let mut taken = 0;
        for (number, gone) in
            (10..).zip([&places[..0], &places[..0], &places[..1], &places[1..], &places])
        {
            for place in gone {
                let place = namespace_of(&sandboxes.join(place));
                let mut socket = enter(&place, RouteSocket::open).unwrap();
                for link in socket.links().unwrap() {
                    if link.name.starts_with('t') && link.alias.is_empty() {
                        run_in(&place, &format!("ip link del {}", link.name));
                        taken += 1;
                    }
                }
            }
            let name = format!("c{number}");
            let one = lab.attach(0, &wanted(&name, &[1], number)).await;
            is_connected(lab, &one.netns, &[1], number);
            assert_eq!(path.repair().await.unwrap(), 0, "after {name}");
            for place in &places {
                let place = namespace_of(&sandboxes.join(place));
                let whose = format!("/{name}");
                eventually(&whose, || run_in(&place, "ip link show").contains(&whose)).await;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        assert!(taken >= 8, "{taken}");
    });
}

#[test]
fn removal_leaves_nothing_and_spares_others() {
    in_lab(1, async |lab| {
        let host = &lab.hosts[0];
        let two = tempfile::tempdir().unwrap();
        let (a, b) =
            (&host.path, open_in(&host.namespace, host_options(two.path(), "b", None)).await);
        let (first, second) = (
            a.attach(&plain("same")).await.unwrap().netns,
            b.attach(&plain("same")).await.unwrap().netns,
        );
        assert!(addresses_of(a).is_disjoint(&addresses_of(&b)), "no address is given twice");
        a.detach("same").await.unwrap();
        a.detach("same").await.unwrap();
        assert!(!first.exists());
        assert!(addresses_of(a).is_empty());
        assert_eq!(b.observe().await.unwrap(), ["same"]);
        reaches_the_world(lab, &second);
        let tables = || {
            let table = |path: &DataPath| path.inner.node().names.table.clone();
            let (one, two) = (table(a), table(&b));
            enter(&host.namespace, move || {
                let mut socket = NftSocket::open()?;
                let chains = socket.base_chains()?;
                Ok([one, two].map(|name| chains.iter().any(|chain| chain.table == name)))
            })
            .unwrap()
        };
        assert_eq!(tables(), [true, true]);
        a.remove_all().await.unwrap();
        assert_eq!(tables(), [false, true]);
        assert!(second.exists());
        b.remove_all().await.unwrap();
        assert_eq!(tables(), [false, false]);
        let links = enter(&host.namespace, || RouteSocket::open()?.links()).unwrap();
        let mut names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["eth0", "lo"]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(host.dir.path().to_str().unwrap()));
    });
}

#[test]
fn a_link_without_a_namespace_is_removed() {
    in_lab(1, async |lab| {
        let path = &lab.hosts[0].path;
        let netns = path.attach(&plain("lost")).await.unwrap().netns;
        // A process holds the namespace, its mount is gone: a crash half-way through a removal.
        let held = std::fs::File::open(&netns).unwrap();
        path.inner.node().containers.remove("lost").unwrap();
        let mesh = namespace_of(&lab.hosts[0].dir.path().join("sandboxes/mesh"));
        let links = || {
            let links = enter(&mesh, || RouteSocket::open()?.links()).unwrap();
            // Those that are ready for other containers are nobody's yet.
            let ours = |link: &Link| link.name.starts_with('t') && !link.alias.is_empty();
            links.into_iter().filter(ours).count()
        };
        assert_eq!((addresses_of(path).len(), links()), (1, 1));
        assert!(path.observe().await.unwrap().is_empty());
        assert_eq!((addresses_of(path).len(), links()), (0, 0));
        drop(held);
    });
}

#[test]
fn removal_reaches_the_mount_namespaces_of_shims() {
    in_lab(1, async |lab| {
        let network = &lab.hosts[0].path;
        let path = network.attach(&plain("task")).await.unwrap().netns;
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
    });
}

#[test]
fn many_tasks_are_attached_and_removed() {
    in_lab(1, async |lab| {
        let network = lab.hosts[0].path.clone();
        let begin = std::time::Instant::now();
        for number in 0..40 {
            network.attach(&plain(&format!("task{number}"))).await.unwrap();
        }
        let attached = begin.elapsed();
        assert_eq!(addresses_of(&network).len(), 40);
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
    });
}
