//! The kubelet's gRPC services on unix sockets: device plugin, plugin registration, pod resources.
