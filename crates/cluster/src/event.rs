//! An Event about a pod: what `kubectl describe pod` shows.
//!
//! One POST, and the only right that it needs is `create events`. Counting an event that happens again would need more, so its writer
//! says each thing once. Source: <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>, `core/v1`.

use serde_json::{Value, json};
use ureq::http::{Method, StatusCode};

use crate::get::{Client, Error, segment};

/// What happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The Event's own name, a DNS subdomain. One of this name that is there already is this one.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID. Without it `kubectl describe pod` does not show the Event.
    pub pod_uid: Option<String>,
    /// How bad it is.
    pub severity: Severity,
    /// In one word of letters, for programs.
    pub reason: String,
    /// In words, up to 1024 bytes.
    pub message: String,
    /// When, in RFC 3339.
    pub time: String,
    /// Which program says so.
    pub component: String,
    /// On which node.
    pub node: String,
}

/// How bad an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Somebody may want to know.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Client {
    /// Makes an Event, unless it is there already.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal.
    pub fn create_event(&self, event: &Event) -> Result<(), Error> {
        let path = format!("/api/v1/namespaces/{}/events", segment(&event.namespace));
        let what = format!("the Event on pod {}/{}", event.namespace, event.pod);
        let (status, body) =
            self.call(Method::POST, &path, Some(object(event).to_string().into_bytes()), &what)?;
        match status {
            StatusCode::CREATED | StatusCode::OK | StatusCode::CONFLICT => Ok(()),
            status => Err(self.refused(status, &body, what)),
        }
    }
}

fn object(event: &Event) -> Value {
    let Event { name, namespace, pod, pod_uid, severity, reason, message, time, component, node } = event;
    let mut involved = json!({ "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod });
    if let (Some(uid), Some(fields)) = (pod_uid, involved.as_object_mut()) {
        fields.insert("uid".to_owned(), json!(uid));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace },
        "involvedObject": involved,
        "type": match severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        },
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": { "component": component, "host": node },
        "reportingComponent": component,
        "reportingInstance": node,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    fn event() -> Event {
        Event {
            name: "testpod1.0123456789abcdef".to_owned(),
            namespace: "default".to_owned(),
            pod: "testpod1".to_owned(),
            pod_uid: Some("u1".to_owned()),
            severity: Severity::Warning,
            reason: "NicUnplugged".to_owned(),
            message: "gone".to_owned(),
            time: "2026-11-24T20:00:00Z".to_owned(),
            component: "virtdp".to_owned(),
            node: "node1".to_owned(),
        }
    }

    /// Posts to a server that answers `status`; gives the outcome, the head and the body that the server saw.
    fn post(status: &'static str) -> (Result<(), Error>, Vec<String>, Value) {
        let temp = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let head: Vec<String> =
                reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let answer = r#"{"message":"in words"}"#;
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).unwrap();
            (head, serde_json::from_slice(&body).unwrap())
        });
        let kubeconfig = temp.path().join("kubeconfig");
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: {server:?}}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let client = Client::from_kubeconfig(&kubeconfig, Duration::from_secs(30)).unwrap();
        let outcome = client.create_event(&event());
        let (head, body) = thread.join().unwrap();
        (outcome, head, body)
    }

    #[test]
    fn an_event_is_posted_into_the_namespace_of_its_pod() {
        let (outcome, head, body) = post("201 Created");
        outcome.unwrap();
        assert_eq!(head[0], "POST /api/v1/namespaces/default/events HTTP/1.1");
        assert!(head.iter().any(|line| line == "content-type: application/json"), "{head:?}");
        assert!(head.iter().any(|line| line == "authorization: Bearer t"), "{head:?}");
        assert_eq!(
            body,
            json!({
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": { "name": "testpod1.0123456789abcdef", "namespace": "default" },
                "involvedObject":
                    { "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "testpod1", "uid": "u1" },
                "type": "Warning",
                "reason": "NicUnplugged",
                "message": "gone",
                "count": 1,
                "firstTimestamp": "2026-11-24T20:00:00Z",
                "lastTimestamp": "2026-11-24T20:00:00Z",
                "source": { "component": "virtdp", "host": "node1" },
                "reportingComponent": "virtdp",
                "reportingInstance": "node1",
            })
        );
    }

    #[test]
    fn one_that_is_there_already_is_no_error_and_a_refusal_is() {
        post("409 Conflict").0.unwrap();
        let refused = post("403 Forbidden").0.unwrap_err();
        assert!(
            refused.to_string().contains("the Event on pod default/testpod1: 403: in words"),
            "{refused}"
        );
        assert!(!refused.is_passing());
        assert!(post("503 Service Unavailable").0.unwrap_err().is_passing());
        assert!(matches!(post("404 Not Found").0, Err(Error::NotFound { .. })));
    }

    #[test]
    fn a_service_account_without_an_authority_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let open =
            || Client::from_service_account("https://10.96.0.1:443", temp.path(), Duration::from_secs(1));
        assert!(matches!(open(), Err(Error::File { .. })));
        std::fs::write(temp.path().join("ca.crt"), "no certificate").unwrap();
        assert!(open().unwrap_err().to_string().contains("there is no certificate in it"));
    }
}
