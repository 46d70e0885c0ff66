package host

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// notice is one netlink message about a link.
func notice(kind uint16, family byte, index uint32) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	b[unix.SizeofNlMsghdr] = family
	binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr+4:], index)
	return b
}

func TestEndedLinks(t *testing.T) {
	whole := slices.Concat(notice(unix.RTM_NEWLINK, 0, 4), notice(unix.RTM_DELLINK, 0, 5), notice(unix.RTM_DELLINK, unix.AF_BRIDGE, 6), notice(unix.RTM_DELLINK, 0, 7))
	if got := endedLinks(whole); !slices.Equal(got, []uint32{5, 7}) {
		t.Errorf("ended %v: a port that left a bridge is no link that ended", got)
	}
	if got := endedLinks(whole[:len(whole)-1]); !slices.Equal(got, []uint32{5}) {
		t.Errorf("ended %v of a message that was cut short", got)
	}
}

func FuzzEndedLinks(f *testing.F) {
	f.Add(notice(unix.RTM_DELLINK, 0, 5))
	f.Add([]byte{16, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, messages []byte) {
		if n := len(endedLinks(messages)); n > len(messages)/unix.SizeofNlMsghdr {
			t.Errorf("%d ends in %d bytes", n, len(messages))
		}
	})
}

// Two links with one index, one after the other, are told apart however alike
// they look, and also if nobody looked between.
func TestLivesTellReusedIndexesApart(t *testing.T) {
	past := lives{born: map[uint32]uint64{}}
	look := func(indexes ...uint32) []Link {
		var links []Link
		for _, index := range indexes {
			links = append(links, Link{Index: index})
		}
		past.mark(links)
		return links
	}
	took := func(b []byte, err error) {
		t.Helper()
		if err := past.took(b, err); err != nil {
			t.Fatal(err)
		}
	}
	first := look(4, 5)
	took(notice(unix.RTM_DELLINK, 0, 5), nil)
	second := look(4, 5)
	if !first[0].equal(second[0]) {
		t.Errorf("4 became %+v, was %+v", second[0], first[0])
	}
	if first[1].Born == second[1].Born {
		t.Error("5 is another link and bears the same number")
	}
	look(4)
	took(notice(unix.RTM_DELLINK, 0, 4), nil)
	look()
	third := look(4, 5)
	if third[0].Born == first[0].Born || third[1].Born == second[1].Born {
		t.Errorf("after an absence: %+v", third)
	}
	took(nil, unix.ENOBUFS)
	if got := look(4); got[0].Doubts == third[0].Doubts || got[0].Born != third[0].Born {
		t.Errorf("after lost notices: %+v", got)
	}
	if err := past.took(nil, unix.EBADF); !errors.Is(err, unix.EBADF) {
		t.Errorf("a broken socket: %v", err)
	}
	if len(past.born) != 1 {
		t.Errorf("%d links remembered, 1 is there", len(past.born))
	}
}
