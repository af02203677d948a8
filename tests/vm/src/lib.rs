//! A QEMU guest with real virtio NICs, without root or KVM.
