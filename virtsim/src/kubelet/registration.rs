//! The registration service on `device-plugins/kubelet.sock`.

use std::path::{Component, Path, PathBuf};

use kubelet_api::deviceplugin::registration_server::Registration;
use kubelet_api::deviceplugin::{Empty, RegisterRequest};
use kubelet_api::tonic::{Request, Response, Status, async_trait};
use tracing::info;

use super::plugin::Reception;

pub(super) struct RegistrationService {
    pub(super) reception: Reception,
    pub(super) folder: PathBuf,
}

#[async_trait]
impl Registration for RegistrationService {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        info!(resource = request.resource_name, endpoint = request.endpoint, "plugin registers");
        let socket = joined(&self.folder, &request.endpoint);
        // The real one returns plain Go errors, which gRPC sends under code Unknown.
        self.reception
            .admit(&request.version, &request.resource_name, socket)
            .await
            .map_err(Status::unknown)?;
        Ok(Response::new(Empty {}))
    }
}

/// What `filepath.Join` of Go makes of both: an endpoint that begins with a slash is below the folder, too.
fn joined(folder: &Path, endpoint: &str) -> PathBuf {
    let mut joined = folder.to_owned();
    for component in Path::new(endpoint).components() {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::ParentDir => drop(joined.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    joined
}
