package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BPFObject is something that the kernel holds for bpf(2): a program, a map or
// a link. Numbers are not used again before they wrap.
type BPFObject struct {
	Kind string // "program", "map" or "link"
	ID   uint32
	Name string // at most 15 characters; links have none
}

func (o BPFObject) String() string {
	if o.Name == "" {
		return fmt.Sprintf("BPF %s %d", o.Kind, o.ID)
	}
	return fmt.Sprintf("BPF %s %d %s", o.Kind, o.ID, o.Name)
}

// BPFObjects lists what the kernel holds for bpf(2), whoever made it.
func BPFObjects() ([]BPFObject, error) {
	// The commands of linux/bpf.h for each kind, and where its info has the name.
	kinds := []struct {
		name               string
		next, open, nameAt int
	}{
		{"program", 11, 13, 64}, // BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID
		{"map", 12, 14, 24},     // BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID
		{"link", 31, 30, 0},     // BPF_LINK_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID
	}
	var objects []BPFObject
	for _, kind := range kinds {
		for id := uint32(0); ; {
			attributes := struct{ id, next, flags uint32 }{id: id}
			_, err := bpf(kind.next, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
			if errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("list BPF %ss: %w", kind.name, err)
			}
			id = attributes.next
			object := BPFObject{Kind: kind.name, ID: id}
			if kind.nameAt > 0 {
				name, err := bpfName(kind.open, id, kind.nameAt)
				if errors.Is(err, unix.ENOENT) {
					continue // gone meanwhile
				}
				if err != nil {
					return nil, fmt.Errorf("read BPF %s %d: %w", kind.name, id, err)
				}
				object.Name = name
			}
			objects = append(objects, object)
		}
	}
	return objects, nil
}

// PinnedBPFObject returns what is pinned by a file of a bpffs, without its name.
func PinnedBPFObject(path string) (BPFObject, error) {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return BPFObject{}, fmt.Errorf("open %s: %w", path, err)
	}
	const get = 7 // BPF_OBJ_GET
	attributes := struct {
		path      uint64
		fd, flags uint32
	}{path: uint64(uintptr(unsafe.Pointer(name)))}
	fd, err := bpf(get, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
	runtime.KeepAlive(name)
	if err != nil {
		return BPFObject{}, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	info, err := bpfInfo(fd)
	if err != nil {
		return BPFObject{}, fmt.Errorf("read %s: %w", path, err)
	}
	// The kernel names what a descriptor is of: anon_inode:bpf-map, for instance.
	of, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return BPFObject{}, fmt.Errorf("read %s: %w", path, err)
	}
	kind := strings.Trim(of[strings.LastIndexAny(of, "-_")+1:], "[]")
	if kind == "prog" {
		kind = "program"
	}
	// The info of each kind begins with a type and the number, struct bpf_*_info.
	return BPFObject{Kind: kind, ID: binary.NativeEndian.Uint32(info[4:])}, nil
}

// bpfName reads an object's name out of its info.
func bpfName(open int, id uint32, at int) (string, error) {
	byID := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(open, unsafe.Pointer(&byID), unsafe.Sizeof(byID))
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	info, err := bpfInfo(fd)
	if err != nil {
		return "", err
	}
	return unix.ByteSliceToString(info[at : at+16]), nil
}

func bpfInfo(fd int) (info [96]byte, err error) {
	const infoByFD = 15 // BPF_OBJ_GET_INFO_BY_FD
	attributes := struct {
		fd, size uint32
		info     uint64
	}{uint32(fd), uint32(len(info)), uint64(uintptr(unsafe.Pointer(&info)))}
	_, err = bpf(infoByFD, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
	return info, err
}
