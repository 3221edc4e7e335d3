//! The suite of the tasks' network.

use ports::network::{ContainerNetwork, Network};

/// Checks a network that has no tasks; it has none afterwards.
///
/// # Panics
/// Where it is not what the port says.
pub async fn check(network: &impl Network) {
    assert_eq!(network.observe().await, Ok(Vec::new()), "it begins empty");
    assert_eq!(network.detach("nobody").await, Ok(()), "what is not there is not an error");

    let first = network.attach(&wanted("one")).await.expect("attach");
    assert_eq!(network.attach(&wanted("one")).await.as_ref(), Ok(&first), "once more does nothing");
    let second = network.attach(&wanted("two")).await.expect("attach");
    assert_ne!(first.netns, second.netns, "each task has its own");
    let mut seen = network.observe().await.expect("observe");
    seen.sort();
    assert_eq!(seen, ["one", "two"]);

    network.detach("one").await.expect("detach");
    assert_eq!(network.observe().await, Ok(vec!["two".to_owned()]));
    assert_eq!(network.detach("one").await, Ok(()), "once more does nothing");
    let again = network.attach(&wanted("one")).await.expect("a name can be used again");
    assert_ne!(again.netns, second.netns);
    for id in ["one", "two"] {
        network.detach(id).await.expect("detach");
    }
    assert_eq!(network.observe().await, Ok(Vec::new()), "nothing is left");
}

fn wanted(id: &str) -> ContainerNetwork {
    ContainerNetwork { id: id.to_owned(), hostname: id.to_owned(), ..ContainerNetwork::default() }
}
