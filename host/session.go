package host

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Connection is an established TCP connection of this host's own.
type Connection struct {
	Local, Peer netip.AddrPort
}

// Session is a connection by which a person has logged in over SSH.
type Session struct {
	Connection
	// User is whom they are here; empty where it cannot be read.
	User string
}

// mostConnections bounds how many connections are read: a host's own are few, and
// those of its workloads are in their namespaces.
const mostConnections = 1 << 20

// Connections lists the established TCP connections of the calling thread's
// network namespace, and the ports that something listens on there. IPv4 addresses
// that an IPv6 socket shows in its own form are told as IPv4.
func Connections() (established []Connection, listening []uint16, err error) {
	for _, name := range []string{"tcp", "tcp6"} {
		file, err := os.Open(filepath.Join("/proc/thread-self/net", name))
		if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list connections: %w", err)
		}
		e, l, err := readConnections(file)
		file.Close()
		if err != nil {
			return nil, nil, fmt.Errorf("list connections: read %s: %w", name, err)
		}
		established, listening = append(established, e...), append(listening, l...)
	}
	slices.Sort(listening)
	return established, slices.Compact(listening), nil
}

// readConnections reads a file in the form of /proc/net/tcp.
func readConnections(from io.Reader) (established []Connection, listening []uint16, err error) {
	const isEstablished, isListening = "01", "0A"
	lines := bufio.NewScanner(from)
	lines.Scan() // the heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != isEstablished && fields[3] != isListening {
			continue
		}
		local, err := readEnd(fields[1])
		if err != nil {
			return nil, nil, err
		}
		if fields[3] == isListening {
			listening = append(listening, local.Port())
			continue
		}
		peer, err := readEnd(fields[2])
		if err != nil {
			return nil, nil, err
		}
		if len(established) == mostConnections {
			return nil, nil, fmt.Errorf("more than %d connections", mostConnections)
		}
		established = append(established, Connection{local, peer})
	}
	return established, listening, lines.Err()
}

// readEnd reads one end: 32-bit words of the address in the machine's order of
// bytes, in hexadecimal, a colon and the port.
func readEnd(text string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(words)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q has no port", text)
	}
	address, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address.Unmap(), uint16(number)), nil
}

// Logins is who says that they have logged in to this machine over SSH: only what
// the login itself has written counts, never that somebody holds a connection, so
// that a stranger who connects to the port is nobody's administrator.
type Logins struct {
	// Connections are known with both ends: SSH_CONNECTION of a process. It takes
	// root, or the same user, to read it.
	Connections map[Connection]string
	// Addresses are where people sit who are logged in, of logind and utmp, which
	// do not know ports. Everybody may read them.
	Addresses map[netip.Addr]string
	// Ports are those that sshd is configured with.
	Ports []uint16
}

// ReadLogins asks everything that knows of logins. root is where the machine's
// files are; "" is "/".
func ReadLogins(root string) Logins {
	l := Logins{Connections: map[Connection]string{}, Addresses: map[netip.Addr]string{}}
	l.readProcesses(filepath.Join("/", root, "proc"))
	l.readLogind(filepath.Join("/", root, "run/systemd/sessions"))
	if data, err := os.ReadFile(filepath.Join("/", root, "run/utmp")); err == nil {
		l.readUtmp(data)
	}
	l.readConfiguration(filepath.Join("/", root, "etc/ssh"))
	return l
}

// Sessions lists the live SSH sessions of this host: connections of the calling
// thread's namespace that a login belongs to.
func Sessions() ([]Session, error) {
	established, listening, err := Connections()
	if err != nil {
		return nil, err
	}
	return ReadLogins("").Among(established, listening), nil
}

// Among picks the connections that logins belong to.
func (l Logins) Among(established []Connection, listening []uint16) []Session {
	ports := slices.Clone(l.Ports)
	for c := range l.Connections {
		ports = append(ports, c.Local.Port())
	}
	var sessions []Session
	for _, c := range established {
		user, exact := l.Connections[c]
		name, known := l.Addresses[c.Peer.Addr()]
		port := c.Local.Port()
		if !exact && !(known && slices.Contains(ports, port) && slices.Contains(listening, port)) {
			continue
		}
		sessions = append(sessions, Session{c, cmp.Or(user, name)})
	}
	slices.SortFunc(sessions, func(a, b Session) int {
		return cmp.Or(a.Peer.Compare(b.Peer), a.Local.Compare(b.Local))
	})
	return slices.Compact(sessions)
}

// readProcesses reads SSH_CONNECTION out of every process's environment.
func (l Logins) readProcesses(proc string) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		environ, err := os.ReadFile(filepath.Join(proc, entry.Name(), "environ"))
		if err != nil {
			continue // it ended, or is another user's
		}
		l.readEnvironment(environ)
	}
}

func (l Logins) readEnvironment(environ []byte) {
	if !bytes.Contains(environ, []byte("SSH_CONNECTION=")) {
		return
	}
	var connection Connection
	var found bool
	var user string
	for variable := range strings.SplitSeq(string(environ), "\x00") {
		switch name, value, _ := strings.Cut(variable, "="); name {
		case "SSH_CONNECTION":
			connection, found = ParseSSHConnection(value)
		case "USER":
			user = value
		}
	}
	if found {
		l.Connections[connection] = user
	}
}

// ParseSSHConnection reads SSH_CONNECTION: client address and port, server address
// and port.
func ParseSSHConnection(value string) (Connection, bool) {
	fields := strings.Fields(value)
	if len(fields) != 4 {
		return Connection{}, false
	}
	peer, ok := parseEnd(fields[0], fields[1])
	local, also := parseEnd(fields[2], fields[3])
	return Connection{Local: local, Peer: peer}, ok && also
}

func parseEnd(address, port string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(address)
	n, bad := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a.Unmap().WithZone(""), uint16(n)), err == nil && bad == nil
}

// readLogind reads systemd-logind's files, one for each session.
func (l Logins) readLogind(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			fields[name] = value
		}
		if fields["STATE"] == "closing" {
			continue
		}
		if address, err := netip.ParseAddr(fields["REMOTE_HOST"]); err == nil {
			l.Addresses[address.Unmap().WithZone("")] = fields["USER"]
		}
	}
}

// readUtmp reads the records of utmp(5) as 64-bit Linux writes them.
func (l Logins) readUtmp(data []byte) {
	const size, userAt, hostAt, addressAt, userProcess = 384, 44, 76, 348, 7
	for ; len(data) >= size; data = data[size:] {
		record := data[:size]
		if binary.NativeEndian.Uint16(record) != userProcess || record[hostAt] == 0 {
			continue
		}
		pid := binary.NativeEndian.Uint32(record[4:])
		if unix.Kill(int(pid), 0) == unix.ESRCH {
			continue // left behind by a login that did not end properly
		}
		var raw [16]byte
		copy(raw[:], record[addressAt:])
		address := netip.AddrFrom16(raw).Unmap()
		if [12]byte(raw[4:]) == [12]byte{} {
			address = netip.AddrFrom4([4]byte(raw[:4]))
		}
		if address.IsUnspecified() {
			var err error
			if address, err = netip.ParseAddr(unix.ByteSliceToString(record[hostAt : hostAt+256])); err != nil {
				continue
			}
		}
		l.Addresses[address.WithZone("")] = unix.ByteSliceToString(record[userAt : userAt+32])
	}
}

// readConfiguration finds the ports of sshd_config(5), 22 if it names none.
func (l *Logins) readConfiguration(dir string) {
	files := []string{filepath.Join(dir, "sshd_config")}
	more, _ := filepath.Glob(filepath.Join(dir, "sshd_config.d", "*.conf"))
	for _, file := range append(files, more...) {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.FieldsFunc(line, func(r rune) bool { return r == '=' || r == ' ' || r == '\t' || r == '\n' || r == '\r' })
			if len(fields) != 2 {
				continue
			}
			switch strings.ToLower(fields[0]) {
			case "port":
				if port, err := strconv.ParseUint(fields[1], 10, 16); err == nil {
					l.Ports = append(l.Ports, uint16(port))
				}
			case "listenaddress":
				if at, err := netip.ParseAddrPort(fields[1]); err == nil {
					l.Ports = append(l.Ports, at.Port())
				}
			}
		}
	}
	if len(l.Ports) == 0 {
		l.Ports = []uint16{22}
	}
	slices.Sort(l.Ports)
	l.Ports = slices.Compact(l.Ports)
}
