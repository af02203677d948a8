//! HTTP around the store: paths, verbs, encodings, `Status` objects.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::Error;
use super::json::Json;
use super::kinds::{Kind, StatusIs, group_version};
use super::patch::Patch;
use super::path::{self, Path, Target};
use super::query::Query;
use super::service::{Api, DryRun};
use super::store::{Deletion, Part, Store};
use super::time::Timestamp;
use super::watch::{Manner, Shape, Wanted, error_event, show, stream};
use super::{discovery, log, protobuf, table};

/// The largest request that the real server takes (etcd's limit, twice over).
const LARGEST: usize = 3 << 20;

/// Where the log of a pod's container is: set by whoever runs pods.
pub trait Logs: Send + Sync {
    /// The file that the container's output goes to.
    fn of(&self, pod: &Value, container: &str) -> PathBuf;
}

/// What requests are answered from.
#[derive(Clone)]
struct Server {
    api: Api,
    logs: Arc<dyn Logs>,
    streams: TaskTracker,
    stop: CancellationToken,
}

/// Serves the API until `stop`; ends when every stream has ended.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    logs: Arc<dyn Logs>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let streams = TaskTracker::new();
    let server = Server { api, logs, streams: streams.clone(), stop: stop.clone() };
    let router = Router::new().fallback(answer).with_state(server);
    let outcome = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    streams.close();
    streams.wait().await;
    outcome
}

async fn answer(State(server): State<Server>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let outcome = match axum::body::to_bytes(body, LARGEST).await {
        Ok(body) => Call::read(server, &parts.method, &parts.uri, &parts.headers, body).run_boxed().await,
        Err(_) => Err(Error::BadRequest(format!(
            "the body of the request cannot be read, or is larger than {LARGEST} bytes"
        ))),
    };
    outcome.unwrap_or_else(|error| {
        tracing::debug!(method = %parts.method, uri = %parts.uri, %error, "refused");
        json_response(error.code(), &error.status())
    })
}

/// One request, read.
struct Call {
    server: Server,
    method: Method,
    path: Option<Path>,
    query: Result<Query, Error>,
    accept: String,
    content_type: String,
    body: Bytes,
}

impl Call {
    fn read(
        server: Server,
        method: &Method,
        uri: &axum::http::Uri,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Self {
        let header = |name: header::HeaderName| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        Call {
            server,
            method: method.clone(),
            path: path::parse(uri.path()),
            query: Query::parse(uri.query().unwrap_or_default()),
            accept: header(header::ACCEPT),
            content_type: header(header::CONTENT_TYPE),
            body,
        }
    }

    async fn run_boxed(self) -> Result<Response<Body>, Error> {
        let query = self.query.clone()?;
        let kinds = || self.server.api.run(|store| Ok(store.kinds().to_vec()));
        let Some(path) = &self.path else { return Err(Error::NoSuchResource) };
        if let Path::Resource(target) = path {
            return self.resource(target, &query).await;
        }
        if self.method != Method::GET && self.method != Method::HEAD {
            return Err(Error::MethodNotAllowed);
        }
        let document = match path {
            Path::Version => discovery::version(),
            Path::Health => return Ok(text_response("ok")),
            Path::Core => discovery::core(),
            Path::Groups => discovery::groups(&kinds().await?),
            Path::Group(name) => discovery::group(&kinds().await?, name)?,
            Path::Resources(of) => discovery::resources(&kinds().await?, of)?,
            Path::OpenApi => discovery::open_api(&kinds().await?),
            Path::OpenApiOf(of) => discovery::open_api_of(&kinds().await?, of)?,
            Path::Resource(_) => return Err(Error::NoSuchResource),
        };
        Ok(json_response(200, &document))
    }

    async fn resource(&self, target: &Target, query: &Query) -> Result<Response<Body>, Error> {
        let of = target.of.clone();
        let plural = target.plural.clone();
        let kind = self.server.api.run(move |store| store.kind(&of.group, &of.version, &plural)).await?;
        let call = OnKind { call: self, kind, target, query };
        let subresource = target.subresource.as_deref();
        match (target.name.as_deref(), subresource) {
            (None, _) if target.watch || query.is_set("watch") => call.watch().await,
            (None, _) => match self.method {
                Method::GET => call.list().await,
                Method::POST => call.create().await,
                Method::DELETE => call.delete_collection().await,
                _ => Err(Error::MethodNotAllowed),
            },
            (Some(name), None) => match self.method {
                Method::GET if target.watch => call.watch().await,
                Method::GET => call.get(name).await,
                Method::PUT => call.update(name, Part::Main).await,
                Method::PATCH => call.patch(name, Part::Main).await,
                Method::DELETE => call.delete(name).await,
                _ => Err(Error::MethodNotAllowed),
            },
            (Some(name), Some("status")) if call.kind.status == StatusIs::Subresource => match self.method {
                Method::GET => call.get(name).await,
                Method::PUT => call.update(name, Part::Status).await,
                Method::PATCH => call.patch(name, Part::Status).await,
                _ => Err(Error::MethodNotAllowed),
            },
            (Some(name), Some(subresource)) if call.kind.group.is_empty() && call.kind.kind == "Pod" => {
                match (subresource, &self.method) {
                    ("binding", &Method::POST) => call.bind(name).await,
                    ("log", &Method::GET) => call.log(name).await,
                    ("binding" | "log", _) => Err(Error::MethodNotAllowed),
                    _ => Err(Error::NoSuchResource),
                }
            }
            _ => Err(Error::NoSuchResource),
        }
    }

    /// The object in the body: JSON, YAML, or what is understood of protobuf.
    fn object(&self) -> Result<Value, Error> {
        match self.content_type.split(';').next().unwrap_or_default().trim() {
            "application/vnd.kubernetes.protobuf" => {
                protobuf::decode(&self.body).ok_or(Error::BadRequest("the protobuf body is torn".to_owned()))
            }
            "application/yaml" | "application/apply-patch+yaml" => {
                let unreadable =
                    |error: serde_saphyr::Error| Error::BadRequest(format!("error decoding YAML: {error}"));
                serde_saphyr::from_slice(&self.body).map_err(unreadable)
            }
            ""
            | "application/json"
            | "application/merge-patch+json"
            | "application/strategic-merge-patch+json"
            | "application/json-patch+json" => serde_json::from_slice(&self.body)
                .map_err(|error| Error::BadRequest(format!("error decoding JSON: {error}"))),
            _ => Err(Error::UnsupportedMediaType {
                expected: "application/json, application/yaml, application/vnd.kubernetes.protobuf",
            }),
        }
    }

    fn is_protobuf(&self) -> bool {
        self.content_type.starts_with("application/vnd.kubernetes.protobuf")
    }

    fn patch(&self) -> Result<Patch, Error> {
        const EXPECTED: &str = "application/json-patch+json, application/merge-patch+json, \
                                application/strategic-merge-patch+json, application/apply-patch+yaml";
        let form = self.content_type.split(';').next().unwrap_or_default().trim();
        let patch = match form {
            "application/merge-patch+json" => Patch::Merge(self.object()?),
            "application/strategic-merge-patch+json" => Patch::Strategic(self.object()?),
            "application/apply-patch+yaml" => Patch::Apply(self.object()?),
            "application/json-patch+json" => match self.object()? {
                Value::Array(operations) => Patch::Json(operations),
                _ => return Err(Error::BadRequest("a JSON patch is a list of operations".to_owned())),
            },
            _ => return Err(Error::UnsupportedMediaType { expected: EXPECTED }),
        };
        match &patch {
            Patch::Merge(Value::Object(_))
            | Patch::Strategic(Value::Object(_))
            | Patch::Apply(Value::Object(_))
            | Patch::Json(_) => Ok(patch),
            _ => Err(Error::BadRequest("the patch is not a JSON object".to_owned())),
        }
    }

    fn shape(&self) -> Shape {
        if self.accept.contains("as=Table") {
            Shape::Row
        } else if self.accept.contains("as=PartialObjectMetadata") {
            Shape::Metadata
        } else {
            Shape::Whole
        }
    }
}

/// A request for objects of a kind.
struct OnKind<'a> {
    call: &'a Call,
    kind: Arc<Kind>,
    target: &'a Target,
    query: &'a Query,
}

impl OnKind<'_> {
    fn namespace(&self) -> Result<String, Error> {
        match (&self.target.namespace, self.kind.is_namespaced()) {
            (Some(namespace), true) => Ok(namespace.clone()),
            (None, false) => Ok(String::new()),
            (None, true) => Err(Error::BadRequest(format!(
                "an empty namespace may not be set: {} live in namespaces",
                self.kind.plural
            ))),
            (Some(_), false) => Err(Error::NoSuchResource),
        }
    }

    /// A write; with `dryRun` only tried.
    async fn write<F>(&self, job: F) -> Result<Arc<Value>, Error>
    where
        F: FnOnce(&mut Store) -> Result<Arc<Value>, Error> + Send + 'static,
    {
        match self.query.dry_run()? {
            DryRun::No => self.call.server.api.run(job).await,
            dry => self.call.server.api.run_whole(dry, job).await,
        }
    }

    fn one(&self, code: u16, object: &Arc<Value>) -> Response<Body> {
        let shown = match self.call.shape() {
            Shape::Row => {
                let version = object.resource_version().unwrap_or_default();
                table::table(&self.kind, std::slice::from_ref(object), version, Timestamp::now())
            }
            shape => show(&self.kind, &self.target.of.version, object, shape),
        };
        json_response(code, &shown)
    }

    async fn get(&self, name: &str) -> Result<Response<Body>, Error> {
        let (kind, namespace, name) = (self.kind.clone(), self.namespace()?, name.to_owned());
        let object = self.call.server.api.run(move |store| store.get(&kind, &namespace, &name)).await?;
        Ok(self.one(200, &object))
    }

    async fn list(&self) -> Result<Response<Body>, Error> {
        let (kind, namespace, selector) =
            (self.kind.clone(), self.target.namespace.clone(), self.query.selector()?);
        let read = move |store: &mut Store| {
            Ok((store.list(&kind, namespace.as_deref(), &selector), store.version()))
        };
        let (objects, version) = self.call.server.api.run(read).await?;
        let document = match self.call.shape() {
            Shape::Row => table::table(&self.kind, &objects, version, Timestamp::now()),
            shape => {
                let (api_version, kind) = match shape {
                    Shape::Metadata => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned()),
                    _ => {
                        let of = &self.target.of;
                        (group_version(&of.group, &of.version), format!("{}List", self.kind.kind))
                    }
                };
                let items =
                    objects.iter().map(|object| show(&self.kind, &self.target.of.version, object, shape));
                json!({
                    "kind": kind, "apiVersion": api_version, "metadata": {"resourceVersion": version.to_string()},
                    "items": items.collect::<Value>(),
                })
            }
        };
        Ok(json_response(200, &document))
    }

    async fn create(&self) -> Result<Response<Body>, Error> {
        let object = self.call.object()?;
        if self.call.is_protobuf() && !protobuf::is_whole(&self.kind.kind) {
            return Err(Error::UnsupportedMediaType { expected: "application/json, application/yaml" });
        }
        let (kind, namespace) = (self.kind.clone(), self.namespace()?);
        let object =
            self.write(move |store| store.create(&kind, &namespace, object, Timestamp::now())).await?;
        Ok(self.one(201, &object))
    }

    async fn update(&self, name: &str, part: Part) -> Result<Response<Body>, Error> {
        let object = self.call.object()?;
        let of_metadata = self.call.is_protobuf() && !protobuf::is_whole(&self.kind.kind);
        if of_metadata && part == Part::Main {
            return Err(Error::UnsupportedMediaType { expected: "application/json, application/yaml" });
        }
        let (kind, namespace, name) = (self.kind.clone(), self.namespace()?, name.to_owned());
        let job = move |store: &mut Store| {
            let mut object = object;
            if of_metadata {
                // What was not read of the body is what the writer had read before: its resourceVersion says so.
                let old = store.get(&kind, &namespace, &name)?;
                for field in ["spec", "status"] {
                    if let Some(value) = old.get(field) {
                        object.put(&format!("/{field}"), value.clone());
                    }
                }
                for field in ["ownerReferences", "finalizers"] {
                    if let Some(value) = old.pointer(&format!("/metadata/{field}")) {
                        object.put(&format!("/metadata/{field}"), value.clone());
                    }
                }
            }
            store.update(&kind, &namespace, &name, part, object)
        };
        Ok(self.one(200, &self.write(job).await?))
    }

    async fn patch(&self, name: &str, part: Part) -> Result<Response<Body>, Error> {
        let patch = self.call.patch()?;
        let (kind, namespace, name) = (self.kind.clone(), self.namespace()?, name.to_owned());
        let existed = {
            let (kind, namespace, name) = (kind.clone(), namespace.clone(), name.clone());
            self.call.server.api.run(move |store| Ok(store.get(&kind, &namespace, &name).is_ok())).await?
        };
        let job =
            move |store: &mut Store| store.patch(&kind, &namespace, &name, part, &patch, Timestamp::now());
        Ok(self.one(if existed { 200 } else { 201 }, &self.write(job).await?))
    }

    /// `DeleteOptions`, from the body and the query.
    fn deletion(&self) -> Result<Deletion, Error> {
        let options = if self.call.body.is_empty() || self.call.is_protobuf() {
            json!({})
        } else {
            self.call.object()?
        };
        let text = |pointer: &str| Some(options.text(pointer).to_owned()).filter(|text| !text.is_empty());
        let grace = options.pointer("/gracePeriodSeconds").and_then(Value::as_u64);
        Ok(Deletion {
            grace: self.query.number("gracePeriodSeconds")?.or(grace),
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
        })
    }

    async fn delete(&self, name: &str) -> Result<Response<Body>, Error> {
        let (kind, namespace, owned) = (self.kind.clone(), self.namespace()?, name.to_owned());
        let deletion = self.deletion()?;
        let job =
            move |store: &mut Store| store.delete(&kind, &namespace, &owned, &deletion, Timestamp::now());
        let last = self.write(job).await?;
        if self.kind.group.is_empty() && self.kind.kind == "Pod" || last.is_terminating() {
            return Ok(self.one(200, &last));
        }
        Ok(json_response(
            200,
            &json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name, "group": self.kind.group, "kind": self.kind.plural, "uid": last.uid()},
            }),
        ))
    }

    async fn delete_collection(&self) -> Result<Response<Body>, Error> {
        let (kind, namespace, selector) =
            (self.kind.clone(), self.target.namespace.clone(), self.query.selector()?);
        let deletion = self.deletion()?;
        let job = move |store: &mut Store| {
            for object in store.list(&kind, namespace.as_deref(), &selector) {
                store.delete(&kind, object.namespace(), object.name(), &deletion, Timestamp::now())?;
            }
            Ok(Arc::new(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})))
        };
        Ok(json_response(200, &*self.write(job).await?))
    }

    async fn bind(&self, name: &str) -> Result<Response<Body>, Error> {
        let binding = self.call.object()?;
        let node = binding.text("/target/name").to_owned();
        if node.is_empty() {
            return Err(Error::BadRequest("a binding needs target.name".to_owned()));
        }
        let (namespace, name) = (self.namespace()?, name.to_owned());
        self.write(move |store| store.bind(&namespace, &name, &node, Timestamp::now())).await?;
        Ok(json_response(
            201,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
        ))
    }

    async fn watch(&self) -> Result<Response<Body>, Error> {
        if self.call.method != Method::GET {
            return Err(Error::MethodNotAllowed);
        }
        let wanted = Wanted {
            kind: self.kind.clone(),
            version: self.target.of.version.clone(),
            namespace: self.target.namespace.clone(),
            name: self.target.name.clone(),
            selector: self.query.selector()?,
            shape: self.call.shape(),
        };
        let bookmarks = self.query.is_set("allowWatchBookmarks");
        let mark_initial_end = self.query.is_set("sendInitialEvents");
        let since = self.query.number("resourceVersion")?.filter(|version| *version != 0);
        let api = &self.call.server.api;
        let opened = match since.filter(|_| !mark_initial_end) {
            Some(since) => api.watch_from(since).await.map(|watch| (Vec::new(), watch)),
            // Without a version, or with 0, a watch begins with what there is.
            None => {
                let Wanted { kind, namespace, selector, .. } = wanted.clone();
                let name = wanted.name.clone();
                let read = move |store: &mut Store| {
                    let mut objects = store.list(&kind, namespace.as_deref(), &selector);
                    objects.retain(|object| name.as_deref().is_none_or(|name| name == object.name()));
                    Ok(objects)
                };
                api.read_and_watch(read).await
            }
        };
        let (initial, watch) = match opened {
            Ok(opened) => opened,
            // The real server answers 200 and tells it as an event.
            Err(error @ Error::Expired { .. }) => {
                let body = Body::from(format!("{}\n", error_event(&error)));
                return Ok(stream_response(body, "application/json"));
            }
            Err(error) => return Err(error),
        };
        let timeout = self.query.number("timeoutSeconds")?.map(Duration::from_secs);
        let manner = Manner { timeout, bookmarks, mark_initial_end };
        let (lines, out) = mpsc::channel(64);
        let server = &self.call.server;
        server.streams.spawn(stream(wanted, initial, watch, manner, lines, server.stop.clone()));
        Ok(stream_response(body_of(out), "application/json"))
    }

    async fn log(&self, name: &str) -> Result<Response<Body>, Error> {
        let (kind, namespace, owned) = (self.kind.clone(), self.namespace()?, name.to_owned());
        let pod = self.call.server.api.run(move |store| store.get(&kind, &namespace, &owned)).await?;
        let file = log::file(&pod, self.query.text("container"), &*self.call.server.logs)?;
        let manner =
            log::Manner { follow: self.query.is_set("follow"), tail: self.query.number("tailLines")? };
        let (lines, out) = mpsc::channel(64);
        let server = &self.call.server;
        server.streams.spawn(log::stream(server.api.clone(), pod, file, manner, lines, server.stop.clone()));
        Ok(stream_response(body_of(out), "text/plain"))
    }
}

fn body_of<T: Into<Bytes> + Send + 'static>(chunks: mpsc::Receiver<T>) -> Body {
    Body::from_stream(ReceiverStream::new(chunks).map(|chunk| Ok::<Bytes, Infallible>(chunk.into())))
}

fn response(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

fn json_response(code: u16, document: &Value) -> Response<Body> {
    response(code, "application/json", Body::from(document.to_string()))
}

fn text_response(text: &'static str) -> Response<Body> {
    response(200, "text/plain", Body::from(text))
}

fn stream_response(body: Body, content_type: &'static str) -> Response<Body> {
    response(200, content_type, body)
}
