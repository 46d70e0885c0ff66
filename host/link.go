package host

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is one network interface.
type Link struct {
	Index  uint32
	Name   string
	Kind   string // veth, bridge, tuntap, device, ...
	MAC    net.HardwareAddr
	MTU    int
	Master uint32 // index of the bridge that it is a port of, or 0
	Up     bool
	// Peer is the index of a veth's other end, in the namespace of that end.
	Peer uint32
	// PeerNamespace is the number by which this namespace knows that of the other
	// end (see NamespaceID); -1 if it is this one, or has no number here.
	PeerNamespace int32
	// Ethernet says that its packets are frames: a tun interface's are not.
	Ethernet bool
	// Born changes when the index is that of another link than before, or of one
	// that was away meanwhile; Doubts when notices were lost, so that this may have
	// happened. Only FollowLinks knows.
	Born, Doubts uint64
}

// equal says whether two links look the same.
func (l Link) equal(o Link) bool {
	return l.Index == o.Index && l.Name == o.Name && l.Kind == o.Kind && slices.Equal(l.MAC, o.MAC) &&
		l.MTU == o.MTU && l.Master == o.Master && l.Up == o.Up && l.Peer == o.Peer && l.PeerNamespace == o.PeerNamespace &&
		l.Ethernet == o.Ethernet && l.Born == o.Born && l.Doubts == o.Doubts
}

// Links lists the links of a namespace by index.
func Links(namespace string) ([]Link, error) {
	var links []Link
	err := In(namespace, func() error {
		all, err := dump(netlink.LinkList)
		for _, l := range all {
			links = append(links, linkOf(l))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list links of namespace %q: %w", namespace, err)
	}
	slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return links, nil
}

// LinkNamed finds one link. The error wraps [fs.ErrNotExist] if it is absent.
func LinkNamed(namespace, name string) (Link, error) {
	var link Link
	err := In(namespace, func() error {
		l, err := find(name)
		if err != nil {
			return err
		}
		link = linkOf(l)
		return nil
	})
	if err != nil {
		return Link{}, fmt.Errorf("link %s in namespace %q: %w", name, namespace, err)
	}
	return link, nil
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	link := Link{Index: uint32(a.Index), Name: a.Name, Kind: l.Type(), MAC: a.HardwareAddr, MTU: a.MTU,
		Master: uint32(a.MasterIndex), Up: a.Flags&net.FlagUp != 0, PeerNamespace: -1, Ethernet: a.EncapType == "ether"}
	if link.Kind == "veth" {
		link.Peer, link.PeerNamespace = uint32(a.ParentIndex), int32(a.NetNsID)
	}
	return link
}

// find returns a link of the thread's namespace; absent is [fs.ErrNotExist].
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent {
		return nil, fs.ErrNotExist
	}
	return link, err
}

// Veth describes a pair of virtual cables' ends.
type Veth struct {
	Name, Namespace     string
	Peer, PeerNamespace string
	MAC, PeerMAC        net.HardwareAddr // nil: the kernel chooses
	MTU                 int              // of both ends; 0: 1500
}

// CreateVeth makes a pair, each end in its namespace from the first moment,
// both up.
func CreateVeth(v Veth) error {
	if err := createVeth(v); err != nil {
		return fmt.Errorf("create veth %s in namespace %q to %s in %q: %w", v.Name, v.Namespace, v.Peer, v.PeerNamespace, err)
	}
	return nil
}

func createVeth(v Veth) error {
	peer, err := openNamespace(v.PeerNamespace)
	if err != nil {
		return err
	}
	defer peer.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.HardwareAddr, attributes.MTU = v.Name, v.MAC, v.MTU
	pair := netlink.NewVeth(attributes)
	pair.PeerName, pair.PeerHardwareAddr = v.Peer, v.PeerMAC
	pair.PeerNamespace = netlink.NsFd(peer.Fd())
	if err := In(v.Namespace, func() error { return netlink.LinkAdd(pair) }); err != nil {
		return err
	}
	err = errors.Join(SetUp(v.Namespace, v.Name), SetUp(v.PeerNamespace, v.Peer))
	if err != nil {
		return errors.Join(err, DeleteLink(v.Namespace, v.Name))
	}
	return nil
}

// CreateBridge makes a bridge that forwards at once: no spanning tree, no
// multicast snooping (without a querier it only loses packets). It is up.
func CreateBridge(namespace, name string) error {
	err := In(namespace, func() error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = name
		snooping := false
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attributes, MulticastSnooping: &snooping})
	})
	if err != nil {
		return fmt.Errorf("create bridge %s in namespace %q: %w", name, namespace, err)
	}
	return SetUp(namespace, name)
}

// SetMaster makes a link a port of a bridge.
func SetMaster(namespace, link, bridge string) error {
	err := In(namespace, func() error {
		port, err := find(link)
		if err != nil {
			return err
		}
		master, err := find(bridge)
		if err != nil {
			return fmt.Errorf("%s: %w", bridge, err)
		}
		return netlink.LinkSetMaster(port, master)
	})
	if err != nil {
		return fmt.Errorf("make %s a port of %s in namespace %q: %w", link, bridge, namespace, err)
	}
	return nil
}

// SetUp brings a link up.
func SetUp(namespace, name string) error {
	err := In(namespace, func() error {
		link, err := find(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return fmt.Errorf("bring up %s in namespace %q: %w", name, namespace, err)
	}
	return nil
}

// DeleteLink removes a link (both ends of a veth); nil if it, or the
// namespace, is absent.
func DeleteLink(namespace, name string) error {
	err := In(namespace, func() error {
		link, err := find(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s in namespace %q: %w", name, namespace, err)
	}
	return nil
}
