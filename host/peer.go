package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of RTM_GETNSID, from the kernel's net_namespace.h, and of links.
const (
	attributeNamespaceNumber  = 1
	attributeNamespaceProcess = 2
	attributeNamespaceFile    = 3
	attributeTargetNamespace  = 46
)

// NoNamespace is the number of a network namespace that has none here: no link of
// this namespace has its other end there.
const NoNamespace = -1

// Sandbox is an open network namespace of somebody else's: looked at, never
// entered.
type Sandbox struct{ fd int }

// OpenSandbox opens the file of a network namespace, such as /proc/PID/ns/net or
// what a runtime mounted one on. The error wraps [fs.ErrInvalid] if the file is
// something else.
func OpenSandbox(path string) (*Sandbox, error) {
	// Not blocking: whoever named the file may have meant a pipe.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open sandbox: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	s := &Sandbox{fd}
	var st unix.Statfs_t
	kind := 0
	if err = unix.Fstatfs(fd, &st); err == nil && st.Type == unix.NSFS_MAGIC {
		kind, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	}
	if err != nil || kind != unix.CLONE_NEWNET {
		s.Close()
		return nil, fmt.Errorf("open sandbox: %s is no network namespace: %w", path, fs.ErrInvalid)
	}
	return s, nil
}

// Close lets go of the namespace.
func (s *Sandbox) Close() error { return unix.Close(s.fd) }

// Owner is the user who made the user namespace that owns the network namespace:
// root for what root made, and the person for what runs rootless.
func (s *Sandbox) Owner() (uint32, error) {
	user, err := unix.IoctlRetInt(s.fd, unix.NS_GET_USERNS)
	if err != nil {
		return 0, fmt.Errorf("owner of sandbox: %w", err)
	}
	defer unix.Close(user)
	owner, err := unix.IoctlGetUint32(user, unix.NS_GET_OWNER_UID)
	if err != nil {
		return 0, fmt.Errorf("owner of sandbox: %w", err)
	}
	return owner, nil
}

// Number is that by which links of the current namespace name this one as the
// place of their other ends (Link.PeerNamespace), or NoNamespace.
func (s *Sandbox) Number() (int32, error) {
	return namespaceNumber(attributeNamespaceFile, uint32(s.fd))
}

// NumberOfProcess is that of a process's network namespace, for whoever may not
// open that: the kernel tells it all the same.
func NumberOfProcess(pid int) (int32, error) {
	return namespaceNumber(attributeNamespaceProcess, uint32(pid))
}

func namespaceNumber(by int, value uint32) (int32, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETNSID, 0)
	request.AddData(&familyOnly{})
	request.AddData(nl.NewRtAttr(by, nl.Uint32Attr(value)))
	messages, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return NoNamespace, fmt.Errorf("number of sandbox: %w", err)
	}
	for _, message := range messages {
		if len(message) < sizeofFamilyOnly {
			continue
		}
		attributes, err := nl.ParseRouteAttr(message[sizeofFamilyOnly:])
		if err != nil {
			return NoNamespace, fmt.Errorf("number of sandbox: %w", err)
		}
		for _, a := range attributes {
			if a.Attr.Type == attributeNamespaceNumber && len(a.Value) >= 4 {
				return int32(binary.NativeEndian.Uint32(a.Value)), nil
			}
		}
	}
	return NoNamespace, nil
}

// familyOnly is the kernel's struct rtgenmsg, padded as netlink wants it.
type familyOnly struct{}

const sizeofFamilyOnly = 4

// Len implements nl.NetlinkRequestData.
func (*familyOnly) Len() int { return sizeofFamilyOnly }

// Serialize implements nl.NetlinkRequestData.
func (*familyOnly) Serialize() []byte { return make([]byte, sizeofFamilyOnly) }

// FarLink is a link in a namespace that is looked at from outside.
type FarLink struct {
	Index uint32 // there
	Name  string
	Kind  string
	MAC   net.HardwareAddr
	// Up says that it is switched on.
	Up bool
	// Parent is the link that it is made on (macvlan, ipvlan) or whose other end it
	// is (veth), by its index in the namespace with the number ParentNamespace;
	// NoNamespace is the far one itself.
	Parent          uint32
	ParentNamespace int32
}

// FarLinks asks the kernel for the links of a namespace by its number. Nothing
// there is run, and nothing there is asked.
func FarLinks(number int32) ([]FarLink, error) {
	all, err := dump(func() ([]FarLink, error) { return farLinks(number) })
	if err != nil {
		return nil, fmt.Errorf("links of namespace %d: %w", number, err)
	}
	return all, nil
}

func farLinks(number int32) ([]FarLink, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(attributeTargetNamespace, nl.Uint32Attr(uint32(number))))
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	interrupted := err
	var links []FarLink
	for _, message := range messages {
		l, err := netlink.LinkDeserialize(nil, message)
		if err != nil {
			return nil, err
		}
		a := l.Attrs()
		links = append(links, FarLink{Index: uint32(a.Index), Name: a.Name, Kind: l.Type(), MAC: a.HardwareAddr,
			Up: a.Flags&net.FlagUp != 0, Parent: uint32(a.ParentIndex), ParentNamespace: int32(a.NetNsID)})
	}
	return links, interrupted
}
