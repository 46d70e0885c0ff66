package dataplane

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkAt finds an interface by its index. An error that wraps [fs.ErrNotExist] says that
// it has gone, with all that was set at it; any other says nothing of it.
func linkAt(ifindex uint32) (netlink.Link, error) { return linkBy(netlink.LinkByIndex, ifindex) }

func linkBy(ask func(int) (netlink.Link, error), ifindex uint32) (netlink.Link, error) {
	l, err := ask(int(ifindex))
	if _, absent := errors.AsType[netlink.LinkNotFoundError](err); absent || errors.Is(err, unix.ENODEV) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("read interface %d: %w", ifindex, err)
	}
	return l, nil
}

// nameOf is what to call an interface in what is said of it.
func nameOf(ifindex uint32) string {
	l, err := linkAt(ifindex)
	if err != nil {
		return fmt.Sprintf("interface %d", ifindex)
	}
	return l.Attrs().Name
}
