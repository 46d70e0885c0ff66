package lab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"bocage.dev/bocage/host"
)

// Snapshot is what the machine looked like before: everything that Bocage and a
// lab make kinds of, and therefore could leave behind. It can be kept in a file as JSON.
type Snapshot struct {
	// Places are files and folders that must not be there afterwards; processes
	// that name them on their command line are ours.
	Places     []string
	Namespaces map[string]bool
	Links      map[string]bool
	Tables     map[string]bool // of nftables
	Mounts     map[string]bool
	Pins       map[string]bool // of BPF objects
	Processes  map[string]bool // by number and start, since numbers come again
}

// process tells a process from a later one of the same number.
type process struct {
	pid     int
	started string // in clock ticks since boot
}

func (p process) String() string { return fmt.Sprintf("%d/%s", p.pid, p.started) }

// testPrefix begins the names of what tests make, here and in other packages:
// they come and go while ours is looked for.
const testPrefix = "bct"

// TakeSnapshot looks at the machine. Places are files and folders, apart from a
// lab's own, that are made and have to be gone when it is asked for residue.
func TakeSnapshot(places ...string) (Snapshot, error) {
	s := Snapshot{Places: places, Processes: map[string]bool{}}
	var err error
	if s.Namespaces, err = set(host.Namespaces()); err != nil {
		return s, err
	}
	if s.Links, err = set(linkNames()); err != nil {
		return s, err
	}
	if s.Tables, err = set(host.FirewallTables("")); err != nil {
		return s, err
	}
	if s.Mounts, err = set(mountPoints("")); err != nil {
		return s, err
	}
	if s.Pins, err = set(pins()); err != nil {
		return s, err
	}
	running, err := processes()
	if err != nil {
		return s, err
	}
	for p := range running {
		s.Processes[p.String()] = true
	}
	return s, nil
}

// Residue lists what is there now, was not there before, and can be told to be
// the named lab's or Bocage's, in words. Other people's things that came
// meanwhile are left out where that can be known.
func (s Snapshot) Residue(prefix string) ([]string, error) {
	var left []string
	add := func(kind string, now []string, before map[string]bool, ours func(string) bool) {
		for _, name := range now {
			if !before[name] && ours(name) {
				left = append(left, kind+" "+name)
			}
		}
	}
	notOthers := func(name string) bool {
		return !strings.HasPrefix(name, testPrefix) || strings.HasPrefix(name, prefix)
	}
	names := func(text string) bool { return s.names(prefix, text) }

	namespaces, err := host.Namespaces()
	if err != nil {
		return nil, err
	}
	add("namespace", namespaces, s.Namespaces, func(name string) bool { return strings.HasPrefix(name, prefix+"-") || names(name) })
	links, err := linkNames()
	if err != nil {
		return nil, err
	}
	add("link", links, s.Links, notOthers)
	tables, err := host.FirewallTables("")
	if err != nil {
		return nil, err
	}
	add("nftables table", tables, s.Tables, func(string) bool { return true })
	mounts, err := mountPoints("")
	if err != nil {
		return nil, err
	}
	add("mount", mounts, s.Mounts, names)
	pinned, err := pins()
	if err != nil {
		return nil, err
	}
	add("pinned BPF object", pinned, s.Pins, names)
	running, err := processes()
	if err != nil {
		return nil, err
	}
	for p, command := range running {
		if !s.Processes[p.String()] && p.pid != os.Getpid() && names(command) {
			left = append(left, fmt.Sprintf("process %d: %s", p.pid, command))
		}
	}
	for _, place := range slices.Concat(s.Places, []string{Dir(prefix)}) {
		if _, err := os.Lstat(place); err == nil {
			left = append(left, "file "+place)
		}
	}
	slices.Sort(left)
	return left, nil
}

// Pinned lists the programs, maps and links that files in the named lab's [PinDir]
// hold, and did not before.
func (s Snapshot) Pinned(prefix string) ([]host.BPFObject, error) {
	files, err := pins()
	if err != nil {
		return nil, err
	}
	var objects []host.BPFObject
	for _, file := range files {
		if info, err := os.Lstat(file); s.Pins[file] || !mentions(file, PinDir(prefix)) || err != nil || info.IsDir() {
			continue
		}
		object, err := host.PinnedBPFObject(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
	return objects, nil
}

// names says whether a text (a path, a command line) names something of ours.
func (s Snapshot) names(prefix, text string) bool {
	return strings.Contains(text, host.NamespaceDir+"/"+prefix+"-") || mentions(text, Dir(prefix)) || mentions(text, PinDir(prefix)) ||
		slices.ContainsFunc(s.Places, func(place string) bool { return mentions(text, place) })
}

// mentions says whether a text holds a path, and not only the beginning of a
// longer name.
func mentions(text, path string) bool {
	for {
		i := strings.Index(text, path)
		if i < 0 {
			return false
		}
		text = text[i+len(path):]
		if text == "" || !strings.ContainsRune("-_.", rune(text[0])) && !unicode.IsLetter(rune(text[0])) && !unicode.IsDigit(rune(text[0])) {
			return true
		}
	}
}

func set(names []string, err error) (map[string]bool, error) {
	all := make(map[string]bool, len(names))
	for _, name := range names {
		all[name] = true
	}
	return all, err
}

// linkNames lists the links of the namespace that we are in.
func linkNames() ([]string, error) {
	links, err := host.Links("")
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	return names, err
}

// mountPoints lists where file systems of a type, or of any, are mounted.
func mountPoints(fsType string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	points := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		// ID parent device root POINT options... - TYPE source options
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 {
			continue
		}
		if kind, _, _ := strings.Cut(after, " "); fsType == "" || kind == fsType {
			points[strings.ReplaceAll(fields[4], `\040`, " ")] = true
		}
	}
	return slices.Sorted(maps.Keys(points)), lines.Err()
}

// pins lists the files of all mounted BPF file systems.
func pins() ([]string, error) {
	mounted, err := mountPoints("bpf")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, point := range mounted {
		err := filepath.WalkDir(point, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone meanwhile
			}
			if err == nil && path != point {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// processes lists the running processes with their command lines. Those that
// have ended and those of the kernel have none, and are left out.
func processes() (map[process]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	running := map[process]string{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(command) == 0 {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything; the start is 20 fields on.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 20 {
			continue
		}
		running[process{pid, fields[19]}] = strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " "))
	}
	return running, nil
}
