//! The suite of the container runtime.

use base::Millis;
use futures::StreamExt;
use ports::runtime::{ContainerConfig, ContainerState, LogOptions, Runtime, RuntimeError};

/// Checks a runtime that has `image` and no containers; it has none afterwards. `shell` makes the
/// configuration of a container that runs a script with that image: the scripts are `sleep 1000`
/// and `exit N`.
///
/// # Panics
/// Where it is not what the port says.
pub async fn check<R: Runtime>(
    runtime: &R,
    image: &str,
    shell: impl Fn(&str, &str) -> ContainerConfig,
) {
    assert_eq!(runtime.observe().await, Ok(Vec::new()), "it begins empty");
    what_is_not_there_is_named(runtime, image, &shell).await;
    calls_may_be_repeated(runtime, &shell).await;
    ends_are_told(runtime, &shell).await;
    removal_ends_everything(runtime, &shell).await;
    assert_eq!(runtime.observe().await, Ok(Vec::new()), "nothing is left");
}

async fn state<R: Runtime>(runtime: &R, id: &str) -> Option<ContainerState> {
    let all = runtime.observe().await.expect("observe");
    all.into_iter().find(|one| one.id == id).map(|one| one.state)
}

async fn what_is_not_there_is_named<R: Runtime>(
    runtime: &R,
    image: &str,
    shell: &impl Fn(&str, &str) -> ContainerConfig,
) {
    assert!(runtime.find_image(image).await.expect("find").is_some());
    assert_eq!(runtime.find_image("missing/image:1").await, Ok(None));
    let config = ContainerConfig { image: "missing/image:1".into(), ..shell("none", "sleep 1000") };
    match runtime.create(&config).await {
        Err(RuntimeError::ImageMissing { reference, .. }) => {
            assert_eq!(reference, "missing/image:1");
        }
        other => panic!("created without an image: {other:?}"),
    }
    let missing = RuntimeError::NoContainer { id: "none".into() };
    assert_eq!(runtime.start("none").await, Err(missing.clone()));
    assert_eq!(runtime.stop("none", Millis(0)).await, Err(missing.clone()));
    assert_eq!(runtime.wait("none").await, Err(missing.clone()));
    let lines: Vec<_> = runtime.logs("none", LogOptions::default()).collect().await;
    assert_eq!(lines, [Err(missing)]);
    assert_eq!(runtime.remove("none").await, Ok(()), "removing it is not an error");
}

async fn calls_may_be_repeated<R: Runtime>(
    runtime: &R,
    shell: &impl Fn(&str, &str) -> ContainerConfig,
) {
    let config = shell("again", "sleep 1000");
    for _ in 0..2 {
        runtime.create(&config).await.expect("create");
        assert_eq!(state(runtime, "again").await, Some(ContainerState::Created));
    }
    runtime.start("again").await.expect("start");
    let running = state(runtime, "again").await;
    assert!(matches!(running, Some(ContainerState::Running { pid, .. }) if pid > 0), "{running:?}");
    runtime.create(&config).await.expect("create");
    runtime.start("again").await.expect("start");
    assert_eq!(state(runtime, "again").await, running, "it was left alone");
    for _ in 0..2 {
        runtime.stop("again", Millis(0)).await.expect("stop");
        let ended = state(runtime, "again").await;
        assert!(matches!(ended, Some(ContainerState::Exited(_))), "{ended:?}");
    }
    let ended = state(runtime, "again").await;
    runtime.start("again").await.expect("start");
    assert_eq!(state(runtime, "again").await, ended, "what has ended is not started again");
    runtime.remove("again").await.expect("remove");
}

async fn ends_are_told<R: Runtime>(runtime: &R, shell: &impl Fn(&str, &str) -> ContainerConfig) {
    runtime.create(&shell("ends", "exit 3")).await.expect("create");
    let (started, ended) = futures::join!(runtime.start("ends"), runtime.wait("ends"));
    assert_eq!(started, Ok(()));
    for ended in [ended, runtime.wait("ends").await] {
        assert!(matches!(&ended, Ok(ContainerState::Exited(exit)) if exit.code == 3), "{ended:?}");
    }
    runtime.create(&shell("stays", "sleep 1000")).await.expect("create");
    runtime.start("stays").await.expect("start");
    let (stopped, ended) = futures::join!(runtime.stop("stays", Millis(0)), runtime.wait("stays"));
    assert_eq!(stopped, Ok(()));
    assert!(matches!(ended, Ok(ContainerState::Exited(_))), "{ended:?}");
    for id in ["ends", "stays"] {
        runtime.remove(id).await.expect("remove");
    }
}

async fn removal_ends_everything<R: Runtime>(
    runtime: &R,
    shell: &impl Fn(&str, &str) -> ContainerConfig,
) {
    let config = shell("gone", "sleep 1000");
    runtime.create(&config).await.expect("create");
    runtime.start("gone").await.expect("start");
    // Whoever waits for it does not wait for ever, whatever the answer is.
    let (removed, _) = futures::join!(runtime.remove("gone"), runtime.wait("gone"));
    assert_eq!(removed, Ok(()));
    assert_eq!(state(runtime, "gone").await, None);
    runtime.create(&config).await.expect("a name can be used again");
    assert_eq!(state(runtime, "gone").await, Some(ContainerState::Created));
    runtime.remove("gone").await.expect("remove");
}
