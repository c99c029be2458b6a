use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use tokio_util::sync::CancellationToken;

use super::*;

fn object(name: &str, revision: u64) -> ConfigMap {
    let metadata = ObjectMeta {
        name: Some(name.into()),
        namespace: Some("default".into()),
        uid: Some(name.into()),
        resource_version: Some(revision.to_string()),
        ..ObjectMeta::default()
    };
    ConfigMap { metadata, ..ConfigMap::default() }
}

fn feed() -> (Feed<ConfigMap>, Informer<ConfigMap>) {
    let (ready, ready_rx) = watch::channel(false);
    let (changes, changes_rx) = watch::channel(0);
    let store = Store::new(ready_rx);
    let shared = Arc::new(Shared { handlers: Mutex::new(Vec::new()), revision: AtomicU64::new(0) });
    let informer =
        Informer { store: store.clone(), shared: Arc::clone(&shared), changes: changes_rx };
    let (interned, listed) = (None, BTreeMap::new());
    (Feed { store, shared, interned, listed, ready, changes }, informer)
}

fn list(feed: &mut Feed<ConfigMap>, objects: &[(&str, u64)]) {
    feed.apply(Event::Init);
    for (name, revision) in objects {
        feed.apply(Event::InitApply(object(name, *revision)));
    }
    feed.apply(Event::InitDone);
}

/// A handler that writes down what it hears, such as `+a` and `-a`.
fn listen(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heard);
    informer.subscribe(Box::new(move |change| {
        let sign = match change {
            Change::Applied { old: None, .. } => '+',
            Change::Applied { old: Some(_), .. } => '~',
            Change::Removed(_) => '-',
        };
        notes.lock().push(format!("{sign}{}", change.object().name_any()));
        true
    }));
    heard
}

/// A server with one empty list, which it counts. The first watch gets `answer`, the others
/// hang.
fn scripted(code: u16, answer: &'static str) -> (Api<ConfigMap>, Arc<AtomicU64>) {
    let (lists, watches) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&lists);
    let router = axum::Router::new().fallback(move |uri: http::Uri| {
        let (lists, watches) = (Arc::clone(&counted), Arc::clone(&watches));
        async move {
            let ok = http::StatusCode::OK;
            if !uri.query().unwrap_or_default().contains("watch=") {
                lists.fetch_add(1, Ordering::Relaxed);
                return (ok, EMPTY);
            }
            if watches.fetch_add(1, Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
            (http::StatusCode::from_u16(code).unwrap(), answer)
        }
    });
    let client = crate::client::in_process(router, "system:kube-test", &[]);
    (Api::namespaced(client, "default"), lists)
}

const EMPTY: &str =
    r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}"#;
const GONE_EVENT: &str = concat!(
    r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#,
    "\n"
);

#[tokio::test(start_paused = true)]
async fn a_revision_that_is_gone_leads_to_a_new_list_however_it_is_told() {
    for (code, answer) in [(410, GONE), (200, GONE_EVENT)] {
        let (api, lists) = scripted(code, answer);
        let tasks = TaskGroup::new(&CancellationToken::new());
        let informer = informer(api, watcher::Config::default(), &tasks);
        assert!(informer.ready().await);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(lists.load(Ordering::Relaxed), 2, "{code}");
        tasks.shutdown(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_keeps_failing_is_asked_for_less_and_less() {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let router = axum::Router::new().fallback(move || {
        count.fetch_add(1, Ordering::Relaxed);
        async { http::StatusCode::SERVICE_UNAVAILABLE }
    });
    let client = crate::client::in_process(router, "system:kube-test", &[]);
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let tasks = TaskGroup::new(&CancellationToken::new());
    let _informer = informer(api, watcher::Config::default(), &tasks);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let asked = asked.load(Ordering::Relaxed);
    assert!((10..40).contains(&asked), "{asked}");
    tasks.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_second_list_tells_only_what_differs() {
    let (mut feed, informer) = feed();
    let heard = listen(&informer);
    list(&mut feed, &[("a", 1), ("b", 2), ("c", 3)]);
    assert!(informer.ready().await);
    heard.lock().clear();
    list(&mut feed, &[("a", 1), ("b", 7), ("d", 8)]);
    assert_eq!(*heard.lock(), ["~b", "+d", "-c"]);
    assert_eq!(informer.store.len(), 3);
}

#[tokio::test]
async fn a_late_subscriber_hears_of_what_is_there_and_of_what_comes() {
    let (mut feed, informer) = feed();
    list(&mut feed, &[("b", 2), ("a", 1)]);
    let heard = listen(&informer);
    feed.apply(Event::Apply(object("a", 3)));
    feed.apply(Event::Delete(object("b", 4)));
    assert_eq!(*heard.lock(), ["+a", "+b", "~a", "-b"]);
}

#[tokio::test]
async fn who_looks_at_a_part_of_each_object_does_not_hear_of_the_rest() {
    let (mut feed, informer) = feed();
    list(&mut feed, &[("a", 1)]);
    let labelled = |name: &str, revision, label: &str| {
        let mut object = object(name, revision);
        object.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
        object
    };
    let mut changed = informer.changed_in(|one| one.metadata.labels.clone());
    changed.borrow_and_update();
    feed.apply(Event::Apply(object("a", 2)));
    assert!(!changed.has_changed().unwrap());
    for event in [
        Event::Apply(labelled("a", 3, "x")),
        Event::Apply(object("b", 4)),
        Event::Delete(object("b", 5)),
    ] {
        feed.apply(event);
        assert!(changed.has_changed().unwrap());
        changed.borrow_and_update();
    }
    feed.apply(Event::Apply(labelled("a", 6, "x")));
    assert!(!changed.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_writer_waits_until_it_sees_its_own_write() {
    let (mut feed, informer) = feed();
    list(&mut feed, &[("a", 1)]);
    assert!(!informer.catch_up(5, Duration::from_secs(1)).await);
    let write = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        feed.apply(Event::Apply(object("a", 5)));
    };
    let (seen, ()) = tokio::join!(informer.catch_up(5, Duration::from_secs(1)), write);
    assert!(seen);
}

#[tokio::test]
async fn a_namespace_is_listed_in_order_and_alone() {
    let (mut feed, informer) = feed();
    list(&mut feed, &[("b", 1), ("a", 2)]);
    let mut other = object("x", 3);
    other.metadata.namespace = Some("default2".into());
    feed.apply(Event::Apply(other));
    let names: Vec<_> =
        informer.store.in_namespace("default").iter().map(|one| one.name_any()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn what_two_informers_of_a_process_hold_is_there_once() {
    let interned = Interned::default();
    let among = || {
        let (mut feed, informer) = feed();
        feed.interned = Some(interned.clone());
        (feed, informer)
    };
    let ((mut first, of_first), (mut second, of_second)) = (among(), among());
    let are_one = |name: &str| {
        let (a, b) =
            (of_first.store.named("default", name), of_second.store.named("default", name));
        Arc::ptr_eq(&a.unwrap(), &b.unwrap())
    };
    list(&mut first, &[("a", 1)]);
    list(&mut second, &[("a", 1)]);
    assert!(are_one("a"), "listed");
    first.apply(Event::Apply(object("a", 2)));
    assert!(!are_one("a"), "one is behind");
    second.apply(Event::Apply(object("a", 2)));
    assert!(are_one("a"));
}
