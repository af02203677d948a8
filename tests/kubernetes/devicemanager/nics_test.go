package devicemanager

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// nic is a NIC that virtdp finds: a link of this network namespace, and a generated sysfs that says that there is
// a virtio device behind it.
type nic struct {
	link, pci string
	node      int
}

// nics are those of this machine, in the order of their addresses.
var nics = []nic{
	{"eth1", "0000:00:09.0", 0},
	{"eth2", "0000:00:0a.0", 0},
	{"eth3", "0000:81:00.0", 1},
	{"eth4", "0000:82:00.0", 1},
}

// makeLinks makes a link for each NIC: veth pairs, which the other tests need, too. They stay down, as NICs that wait for
// a pod do.
func makeLinks() error {
	socket, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("a netlink socket: %w", err)
	}
	defer syscall.Close(socket)
	for pair := range slices.Chunk(nics, 2) {
		if err := makePair(socket, pair[0].link, pair[1].link); err != nil {
			return fmt.Errorf("make %s and %s: %w", pair[0].link, pair[1].link, err)
		}
	}
	return nil
}

func makePair(socket int, one, other string) error {
	// IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA and VETH_INFO_PEER of include/uapi/linux/{if_link,veth}.h.
	const linkInfo, kind, data, peer = 18, 1, 2, 1
	attribute := func(number uint16, payload ...byte) []byte {
		bytes := binary.NativeEndian.AppendUint16(nil, uint16(4+len(payload)))
		bytes = binary.NativeEndian.AppendUint16(bytes, number)
		bytes = append(bytes, payload...)
		return append(bytes, make([]byte, (4-len(bytes)%4)%4)...)
	}
	link := func(name string) []byte {
		header := make([]byte, syscall.SizeofIfInfomsg)
		return append(header, attribute(syscall.IFLA_IFNAME, append([]byte(name), 0)...)...)
	}
	far := attribute(data, attribute(peer, link(other)...)...)
	body := append(link(one), attribute(linkInfo, append(attribute(kind, []byte("veth")...), far...)...)...)
	message := binary.NativeEndian.AppendUint32(nil, uint32(syscall.NLMSG_HDRLEN+len(body)))
	message = binary.NativeEndian.AppendUint16(message, syscall.RTM_NEWLINK)
	flags := uint16(syscall.NLM_F_REQUEST | syscall.NLM_F_ACK | syscall.NLM_F_CREATE | syscall.NLM_F_EXCL)
	message = binary.NativeEndian.AppendUint16(message, flags)
	message = append(message, make([]byte, 8)...) // sequence and port
	message = append(message, body...)
	if err := syscall.Sendto(socket, message, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	count, _, err := syscall.Recvfrom(socket, answer, 0)
	if err != nil {
		return err
	}
	if count < syscall.NLMSG_HDRLEN+4 {
		return fmt.Errorf("the kernel answers %d bytes", count)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[syscall.NLMSG_HDRLEN:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// sysfs makes the tree: what virtdp reads of a sysfs, with the links of this namespace.
func sysfs(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(path, target string) {
		t.Helper()
		folder := filepath.Join(root, filepath.Dir(path))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		relative, err := filepath.Rel(folder, filepath.Join(root, target))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(relative, filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	index := func(name string) string {
		t.Helper()
		known, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(known.Index)
	}
	write("devices/virtual/net/lo/ifindex", index("lo"))
	link("class/net/lo", "devices/virtual/net/lo")
	for number, nic := range nics {
		pci := filepath.Join("devices/pci0000:00", nic.pci)
		virtio := fmt.Sprintf("virtio%d", number)
		device := filepath.Join(pci, virtio)
		write(filepath.Join(pci, "modalias"), "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00")
		write(filepath.Join(pci, "numa_node"), fmt.Sprint(nic.node))
		link(filepath.Join(pci, "subsystem"), "bus/pci")
		link(filepath.Join(pci, "driver"), "bus/pci/drivers/virtio-pci")
		link(filepath.Join("bus/pci/devices", nic.pci), pci)
		write(filepath.Join(device, "modalias"), "virtio:d00000001v00001AF4")
		link(filepath.Join(device, "subsystem"), "bus/virtio")
		link(filepath.Join(device, "driver"), "bus/virtio/drivers/virtio_net")
		link(filepath.Join("bus/virtio/devices", virtio), device)
		interfaces := filepath.Join(device, "net", nic.link)
		write(filepath.Join(interfaces, "ifindex"), index(nic.link))
		link(filepath.Join(interfaces, "device"), device)
		link(filepath.Join("class/net", nic.link), interfaces)
	}
	return root
}
