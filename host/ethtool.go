package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of linux/ethtool.h that x/sys does not name.
const (
	ethtoolGetStrings  = 0x1b // ETHTOOL_GSTRINGS
	ethtoolGetSetSizes = 0x37 // ETHTOOL_GSSET_INFO
	ethtoolGetFeatures = 0x3a // ETHTOOL_GFEATURES
	ethtoolSetFeatures = 0x3b // ETHTOOL_SFEATURES
	featureStrings     = 4    // ETH_SS_FEATURES
	stringLength       = 32   // ETH_GSTRING_LEN
)

// DisableOffloads makes a link carry packets as they are on the wire: no
// segmentation or receive offload of any protocol, no scatter-gather, all
// checksums filled in. Whoever reads packets behind it sees no super-frame.
func DisableOffloads(namespace, link string) error {
	err := In(namespace, func() error {
		f, err := openFeatures(link)
		if err != nil {
			return err
		}
		defer f.close()
		return f.set(isOffload, false)
	})
	if err != nil {
		return fmt.Errorf("disable offloads of %s in namespace %q: %w", link, namespace, err)
	}
	return nil
}

// isOffload picks the features to clear by the names that the kernel gives
// them, because new ones are added all the time and old switches (tso, gso)
// do not reach them.
func isOffload(feature string) bool {
	return strings.Contains(feature, "segmentation") || strings.Contains(feature, "checksum") ||
		strings.Contains(feature, "scatter-gather") || strings.HasPrefix(feature, "tx-gso-") ||
		strings.HasPrefix(feature, "rx-gro") || feature == "rx-lro"
}

// features are those of a link, in the namespace of the thread that opened them.
type features struct {
	socket int
	link   string
	names  []string // by bit number
}

func openFeatures(link string) (*features, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	names, err := featureNames(socket, link)
	if err != nil {
		unix.Close(socket)
		return nil, err
	}
	return &features{socket, link, names}, nil
}

func (f *features) close() { unix.Close(f.socket) }

// featureNames lists the names of the link's features by bit number.
func featureNames(socket int, link string) ([]string, error) {
	// struct ethtool_sset_info: cmd, reserved, sset_mask (64 bit), one size.
	sizes := make([]byte, 4+4+8+4)
	binary.NativeEndian.PutUint32(sizes, ethtoolGetSetSizes)
	binary.NativeEndian.PutUint64(sizes[8:], 1<<featureStrings)
	if err := ethtool(socket, link, sizes); err != nil {
		return nil, err
	}
	count := binary.NativeEndian.Uint32(sizes[16:])
	if count > 1024 {
		return nil, fmt.Errorf("%d features: %w", count, unix.E2BIG)
	}
	// struct ethtool_gstrings: cmd, string_set, len, the strings.
	texts := make([]byte, 4+4+4+count*stringLength)
	binary.NativeEndian.PutUint32(texts, ethtoolGetStrings)
	binary.NativeEndian.PutUint32(texts[4:], featureStrings)
	binary.NativeEndian.PutUint32(texts[8:], count)
	if err := ethtool(socket, link, texts); err != nil {
		return nil, err
	}
	names := make([]string, count)
	for i := range names {
		name, _, _ := bytes.Cut(texts[12+i*stringLength:][:stringLength], []byte{0})
		names[i] = string(name)
	}
	return names, nil
}

// set switches those that are chosen. The kernel leaves out what the link cannot
// change: a veth changes all of them.
func (f *features) set(chosen func(string) bool, on bool) error {
	// struct ethtool_sfeatures: cmd, size, then pairs of valid and requested.
	blocks := (len(f.names) + 31) / 32
	request := make([]byte, 4+4+8*blocks)
	binary.NativeEndian.PutUint32(request, ethtoolSetFeatures)
	binary.NativeEndian.PutUint32(request[4:], uint32(blocks))
	for i, name := range f.names {
		if !chosen(name) {
			continue
		}
		pair := request[8+8*(i/32):]
		binary.NativeEndian.PutUint32(pair, binary.NativeEndian.Uint32(pair)|1<<(i%32))
		if on {
			binary.NativeEndian.PutUint32(pair[4:], binary.NativeEndian.Uint32(pair[4:])|1<<(i%32))
		}
	}
	return ethtool(f.socket, f.link, request)
}

// HasFeature says whether a feature of a link is on, by the name that the kernel gives
// it, in the calling thread's namespace. A link that has no such feature has it off.
// The error wraps [fs.ErrNotExist] if there is no such link.
func HasFeature(link, feature string) (on bool, err error) {
	if on, err = hasFeature(link, feature); err != nil {
		return false, fmt.Errorf("read feature %s of %s: %w", feature, link, err)
	}
	return on, nil
}

func hasFeature(link, feature string) (bool, error) {
	f, err := openFeatures(link)
	if err != nil {
		return false, err
	}
	defer f.close()
	active, err := f.active(false)
	return slices.Contains(active, feature), err
}

// SetFeature switches a feature of a link, by the name that the kernel gives it, in the
// calling thread's namespace. It reports whether that was necessary; a link that has
// no such feature has it switched off. The error wraps [fs.ErrNotExist] if there is no
// such link, or none any more.
func SetFeature(link, feature string, on bool) (changed bool, err error) {
	if changed, err = setFeature(link, feature, on); err != nil {
		return changed, fmt.Errorf("switch feature %s of %s: %w", feature, link, err)
	}
	return changed, nil
}

func setFeature(link, feature string, on bool) (bool, error) {
	f, err := openFeatures(link)
	if err != nil {
		return false, err
	}
	defer f.close()
	is := func(name string) bool { return name == feature }
	active, err := f.active(false)
	if err != nil || slices.ContainsFunc(active, is) == on {
		return false, err
	}
	if err := f.set(is, on); err != nil {
		return false, err
	}
	if active, err = f.active(false); err != nil {
		return true, err
	}
	if slices.ContainsFunc(active, is) != on {
		return false, fmt.Errorf("its driver does not: %w", unix.EOPNOTSUPP)
	}
	return true, nil
}

// ethtool makes one SIOCETHTOOL call, which reads and fills the value.
func ethtool(socket int, link string, value []byte) error {
	if len(link) >= unix.IFNAMSIZ {
		return fs.ErrNotExist
	}
	request := struct { // struct ifreq with ifr_data in its union of 24 bytes
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value[0])}
	copy(request.name[:], link)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(value)
	switch errno {
	case 0:
		return nil
	case unix.ENODEV:
		return fs.ErrNotExist
	default:
		return errno
	}
}

// Offloads lists the features of a link, in the calling thread's namespace, that
// DisableOffloads would switch off and that are on: whoever reads packets behind
// it may see super-frames, or checksums that are not filled in yet.
func Offloads(link string) ([]string, error) {
	on, err := offloads(link)
	if err != nil {
		return nil, fmt.Errorf("read offloads of %s: %w", link, err)
	}
	return on, nil
}

func offloads(link string) ([]string, error) {
	f, err := openFeatures(link)
	if err != nil {
		return nil, err
	}
	defer f.close()
	active, err := f.active(true)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(active, func(name string) bool { return !isOffload(name) }), nil
}

// active lists those that are on, maybe only such as can be switched.
func (f *features) active(switchable bool) ([]string, error) {
	// struct ethtool_gfeatures: cmd, size, then available, requested, active and
	// never changed, 32 features at a time.
	blocks := (len(f.names) + 31) / 32
	reply := make([]byte, 4+4+16*blocks)
	binary.NativeEndian.PutUint32(reply, ethtoolGetFeatures)
	binary.NativeEndian.PutUint32(reply[4:], uint32(blocks))
	if err := ethtool(f.socket, f.link, reply); err != nil {
		return nil, err
	}
	var on []string
	for i, name := range f.names {
		block := reply[8+16*(i/32):]
		available, active := binary.NativeEndian.Uint32(block), binary.NativeEndian.Uint32(block[8:])
		if active&(1<<(i%32)) != 0 && (!switchable || available&(1<<(i%32)) != 0) {
			on = append(on, name)
		}
	}
	return on, nil
}
