package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// noticeBuffer is the receive buffer for notices in bytes. Overrunning it loses
// nothing: the kernel says so, and the links are listed anyway.
const noticeBuffer = 1 << 20

// FollowLinks calls each with all links of the current namespace: at the start,
// and whenever they have changed since the last call. Changes that come while
// each runs are seen together in the next call. It returns what each returned,
// or the context's error.
func FollowLinks(ctx context.Context, each func([]Link) error) error {
	notices, err := subscribeLinks()
	if err != nil {
		return fmt.Errorf("follow links: %w", err)
	}
	defer notices.Close()
	stop := context.AfterFunc(ctx, func() { notices.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	// Subscribed before the first listing, so that no change falls between.
	var last []Link
	for first := true; ; first = false {
		links, err := Links("")
		if err != nil {
			return fmt.Errorf("follow links: %w", err)
		}
		if first || !slices.EqualFunc(links, last, Link.equal) {
			if err := each(links); err != nil {
				return err
			}
			last = links
		}
		if err := awaitNotice(notices); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("follow links: %w", err)
		}
	}
}

// subscribeLinks opens a netlink socket on which the kernel tells every change
// of a link. It is non-blocking, so Go's poller waits for it.
func subscribeLinks() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// More than the default only makes overruns rarer.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, noticeBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// awaitNotice waits for one notice and takes all that are there. What they say
// does not matter, so that a lost one (ENOBUFS) is as good as a read one.
func awaitNotice(notices *os.File) error {
	var scrap [512]byte
	if _, err := notices.Read(scrap[:]); err != nil && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	raw, err := notices.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		// Bounded, so that a storm of notices cannot keep the listing away.
		for range 4096 {
			if _, err := unix.Read(int(fd), scrap[:]); errors.Is(err, unix.EAGAIN) {
				return
			}
		}
	})
}
