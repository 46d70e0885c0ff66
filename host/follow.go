package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
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
// each runs are seen together in the next call; Link.Born tells those apart that
// look the same and are not. It returns what each returned, or the context's
// error.
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
	past := lives{born: map[uint32]uint64{}}
	for first := true; ; first = false {
		links, err := Links("")
		if err != nil {
			return fmt.Errorf("follow links: %w", err)
		}
		past.mark(links)
		if first || !slices.EqualFunc(links, last, Link.equal) {
			if err := each(links); err != nil {
				return err
			}
			last = links
		}
		if err := past.await(notices); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("follow links: %w", err)
		}
	}
}

// lives tells links apart that have one index, one after the other.
type lives struct {
	ends   uint64            // that were told
	born   map[uint32]uint64 // by index of a link that is there: how many ends came before it
	doubts uint64            // how often notices were lost
}

// mark writes down what is known of each link.
func (l *lives) mark(links []Link) {
	exists := make(map[uint32]bool, len(links))
	for i := range links {
		index := links[i].Index
		exists[index] = true
		if _, known := l.born[index]; !known {
			l.born[index] = l.ends
		}
		links[i].Born, links[i].Doubts = l.born[index], l.doubts
	}
	maps.DeleteFunc(l.born, func(index uint32, _ uint64) bool { return !exists[index] })
}

// await waits for one notice and takes all that are there.
func (l *lives) await(notices *os.File) error {
	buffer := make([]byte, 1<<16)
	n, err := notices.Read(buffer)
	if err = l.took(buffer[:max(n, 0)], err); err != nil {
		return err
	}
	raw, err := notices.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		// Bounded, so that a storm of notices cannot keep the listing away.
		for range 4096 {
			n, err := unix.Read(int(fd), buffer)
			if errors.Is(err, unix.EAGAIN) {
				return
			}
			// What else can go wrong is told by the next read that waits.
			_ = l.took(buffer[:max(n, 0)], err)
		}
	})
}

// took notes what one read brought. What links look like is listed anyway, so
// only ends matter, and whether any were lost.
func (l *lives) took(notices []byte, err error) error {
	if errors.Is(err, unix.ENOBUFS) {
		l.doubts++
		return nil
	}
	if err != nil {
		return err
	}
	for _, index := range endedLinks(notices) {
		l.ends++
		delete(l.born, index)
	}
	return nil
}

// endedLinks reads the indexes of links that are gone, or went to another
// namespace, from netlink messages. A port that leaves a bridge is told of in the
// same way, in the bridges' family.
func endedLinks(messages []byte) []uint32 {
	const header, info = unix.SizeofNlMsghdr, unix.SizeofIfInfomsg
	var ended []uint32
	for len(messages) >= header {
		length := int(binary.NativeEndian.Uint32(messages))
		if length < header || length > len(messages) {
			break
		}
		body := messages[header:length]
		if binary.NativeEndian.Uint16(messages[4:]) == unix.RTM_DELLINK && len(body) >= info && body[0] == unix.AF_UNSPEC {
			ended = append(ended, binary.NativeEndian.Uint32(body[4:]))
		}
		messages = messages[min((length+3)&^3, len(messages)):]
	}
	return ended
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
