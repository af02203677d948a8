//! What people get wrong on a real node, and what they are then told. Each ends as it began: nothing is left of it.

use anyhow::Result;

use crate::demo::walkthrough::Walk;

const BASE: &str = "deployments/kustomize/base/daemonset.yaml";

/// Manifests that do not fit the node. Those that no API server takes are the business of `manifests`.
pub(super) fn of_manifests(walk: &mut Walk<'_>) -> Result<()> {
    walk.step("An image that is not on the node, and may not be pulled");
    walk.type_in("kubectl run lost --image=virtnet:0.0.0 --image-pull-policy=Never")?;
    walk.says("the image is named", "kubectl describe pod lost", &["virtnet:0.0.0", "not present"])?;
    walk.type_in("kubectl delete pod lost --grace-period=1")?;

    walk.step("A kubelet with another root folder than the manifest says");
    // To the pod it is the same whether the kubelet's folder is elsewhere or the manifest's is.
    walk.type_in(&format!(
        "sed 's#/var/lib/kubelet#/var/lib/k0s/kubelet#; s/^  name: virtdp$/  name: elsewhere/; s/component: virtdp/component: elsewhere/; \
         s/image: virtnet$/image: virtnet:0.1.0/' {BASE} | kubectl apply --namespace=kube-system -f -"
    ))?;
    walk.says(
        "the missing folder is named",
        "kubectl describe pods --namespace=kube-system --selector=app.kubernetes.io/component=elsewhere",
        &["FailedMount", "/var/lib/k0s/kubelet/device-plugins is not a directory"],
    )?;
    walk.type_in("kubectl delete daemonset elsewhere --namespace=kube-system")?;
    Ok(())
}

/// Meta plugins that are missing, or one too many.
pub(super) fn of_meta_plugins(walk: &mut Walk<'_>) -> Result<()> {
    walk.step("Multus is configured, but not there");
    walk.type_in("mv /opt/cni/bin/multus /opt/cni/multus")?;
    walk.type_in("kubectl apply -f deployments/pod-tc1.yaml")?;
    walk.says(
        "the pod says which plugin is missing, and where",
        "kubectl describe pod testpod1",
        &["FailedCreatePodSandBox", "failed to find plugin \"multus\"", "/opt/cni/bin"],
    )?;
    walk.type_in("mv /opt/cni/multus /opt/cni/bin/multus")?;
    walk.type_in("kubectl wait --for=condition=Ready pod/testpod1 --timeout=120s")?;
    walk.type_in("kubectl delete pod testpod1 --grace-period=1")?;

    walk.step("virt-meta is installed where Multus is first already");
    walk.type_in("kubectl apply -k deployments/kustomize/overlays/virt-meta")?;
    walk.says(
        "the installer refuses, and says what to do",
        "kubectl logs --namespace=kube-system --selector=app.kubernetes.io/component=virtdp --container=install",
        &["00-multus.conf", "install without --meta"],
    )?;
    walk.type_in("ls /etc/cni/net.d")?;
    Ok(())
}
