//! Firewalls of others on the host.

use std::os::fd::OwnedFd;

use netplan::{Bytes, Edit, Value, set};
use ports::network::Network;

use super::encrypted::{add_encrypted, keepers, network, settle};
use super::lab::*;
use crate::namespace::{enter, in_new};
use crate::nft::expression::{Base, Rule};
use crate::nft::foreign::Foreign;
use crate::nft::table::{BaseChain, Chain, NftSocket, Table, UNKNOWN};
use crate::nft::{INET, hook};
use crate::tables::overlay;

/// A firewall that ends with a refusal of everything, or with rules of the administrator before.
fn firewall(namespace: &OwnedFd, rules: Vec<Rule>) {
    let chain = Chain::base("FORWARD", "filter", hook::FORWARD, 0, rules);
    let table = Table::new(INET, "others", Vec::new(), Vec::new(), vec![chain]);
    enter(namespace, move || NftSocket::open()?.install(&table, &[]).map(drop)).unwrap();
}

fn comments(namespace: &OwnedFd) -> Vec<String> {
    let rules = enter(namespace, || {
        let chain = BaseChain {
            family: INET,
            table: "others".into(),
            name: "FORWARD".into(),
            hook: hook::FORWARD,
            drops: false,
        };
        NftSocket::open()?.foreign_rules(&chain)
    });
    rules.unwrap().into_iter().map(|rule| rule.comment).collect()
}

#[test]
fn a_final_drop_is_passed_and_an_explicit_one_is_obeyed() {
    in_lab(1, async |lab| {
        lab.add_network(INGRESS);
        let service = lab.add_service(INGRESS, 1, &[(8080, 80), (8081, 80)]);
        lab.add_task(INGRESS, 0, 20, Some(service));
        lab.tell_all().await;
        let web = lab.attach(0, &wanted("web", &[INGRESS], 20)).await;
        let _web = Server::start(&web.netns, "web", 80);
        let host = &lab.hosts[0];
        let to = |port| (host.address, port);
        assert!(ask(&lab.client, to(8080)).is_ok());
        firewall(&host.namespace, vec![Rule::new().drop()]);
        assert!(ask(&lab.client, to(8080)).is_err(), "a drop anywhere wins");
        assert_eq!(host.path.repair().await.unwrap(), 2);
        assert!(ask(&lab.client, to(8080)).is_ok());
        assert_eq!(comments(&host.namespace), ["shoal-h1", "shoal-h1", ""]);
        assert_eq!(host.path.repair().await.unwrap(), 0);

        // The administrator's word is before ours, also when it comes later.
        let target = Rule::new().protocol(6).load(Base::Transport, 2, 2, 0);
        let denied = target.is(0, &8081u16.to_be_bytes()).drop();
        let (denied, namespace) = (denied.clone(), host.namespace.try_clone().unwrap());
        enter(&namespace, move || {
            let chain = BaseChain {
                family: INET,
                table: "others".into(),
                name: "FORWARD".into(),
                hook: hook::FORWARD,
                drops: false,
            };
            let mut socket = NftSocket::open()?;
            let last = socket.foreign_rules(&chain)?.last().map(|rule| rule.handle);
            socket.add_foreign(&Foreign { chain: &chain, comment: "", before: last }, &denied)
        })
        .unwrap();
        assert_eq!(host.path.repair().await.unwrap(), 2);
        assert_eq!(comments(&host.namespace), ["", "shoal-h1", "shoal-h1", ""]);
        assert!(ask(&lab.client, to(8080)).is_ok());

        // A reload that forgets ours is mended; a firewall without a final drop needs none.
        firewall(&host.namespace, vec![Rule::new().reject()]);
        host.path.repair().await.unwrap();
        assert!(ask(&lab.client, to(8080)).is_ok());
        firewall(&host.namespace, Vec::new());
        host.path.repair().await.unwrap();
        assert_eq!(comments(&host.namespace), Vec::<String>::new());
    });
}

#[test]
fn the_tunnels_ports_pass_a_firewall_while_there_is_an_encrypted_network() {
    in_lab(2, async |lab| {
        let mut keepers = keepers(lab);
        for host in &lab.hosts {
            enter(&host.namespace, || {
                let hook = Chain::base("input", "filter", hook::INPUT, 0, vec![Rule::new().drop()]);
                let table = Table::new(INET, "wall", Vec::new(), Vec::new(), vec![hook]);
                NftSocket::open()?.install(&table, &[])
            })
            .unwrap();
        }
        let wall = |lab: &Lab| {
            let chains = enter(&lab.hosts[0].namespace, || NftSocket::open()?.base_chains());
            let chains = chains.unwrap().into_iter();
            let chain = chains.into_iter().find(|chain| chain.table == "wall").unwrap();
            let rules =
                enter(&lab.hosts[0].namespace, move || NftSocket::open()?.foreign_rules(&chain));
            rules.unwrap().len() - 1
        };
        add_encrypted(lab, 1);
        settle(lab, &mut keepers).await;
        assert_eq!(wall(lab), 3, "VXLAN's and two");
        let gone = types::DirectoryUpdate {
            removed_networks: vec![network(1)],
            ..types::DirectoryUpdate::default()
        };
        lab.hosts[0].path.update(gone).await.unwrap();
        assert_eq!(wall(lab), 1);
    });
}

#[test]
fn what_the_administrators_own_chain_drops_is_dropped() {
    in_lab(1, async |lab| {
        let host = &lab.hosts[0];
        let attached = host
            .path
            .attach(&ports::network::ContainerNetwork { id: "task".into(), ..Default::default() })
            .await
            .unwrap();
        let _beyond = Server::start_in(&lab.client, "beyond", 80);
        let from = namespace_of(&attached.netns);
        let beyond = ("192.0.2.100".parse().unwrap(), 80);
        assert!(ask(&from, beyond).is_ok());
        let find = || {
            let chains = enter(&host.namespace, || NftSocket::open()?.base_chains()).unwrap();
            chains.into_iter().find(|chain| chain.name == "shoal_user").unwrap()
        };
        let chain = find();
        enter(&host.namespace, move || {
            let place = Foreign { chain: &chain, comment: "", before: None };
            NftSocket::open()?.add_foreign(&place, &Rule::new().drop())
        })
        .unwrap();
        assert!(ask(&from, beyond).is_err());
        host.path.repair().await.unwrap();
        let chain = find();
        let rules = enter(&host.namespace, move || NftSocket::open()?.foreign_rules(&chain));
        assert_eq!(rules.unwrap().len(), 1, "it is the administrator's");
    });
}

#[test]
fn an_edit_after_somebody_elses_change_is_made_and_the_change_is_known() {
    let put = |last| {
        let key = Bytes::new(&[10, 0, 0, last]).unwrap();
        [Edit::Put { set: set::VIP4, key, value: Value::Class(1) }]
    };
    let table = overlay::balancing(&[]);
    in_new(|| {
        let (mut ours, mut others) = (NftSocket::open()?, NftSocket::open()?);
        ours.install(&table, &[])?;
        let before = ours.generation()?;
        let after = ours.edit(&table, &put(1), before)?;
        assert_eq!((after, ours.generation()?), (before + 1, before + 1));
        others.remove(INET, "nobodys")?;
        assert_eq!(ours.edit(&table, &put(2), after)?, UNKNOWN);
        assert_eq!(ours.elements_of(&table, set::VIP4)?.len(), 2);
        // From then on it is not asked for.
        assert_eq!(ours.edit(&table, &put(3), UNKNOWN)?, UNKNOWN);
        Ok(())
    })
    .unwrap();
}
