package shell

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

func pwd(c *call) int { fmt.Fprintln(c.std.Out, c.dir); return 0 }

func ls(c *call) int {
	letters, names := c.options()
	if len(names) == 0 {
		names = []string{"."}
	}
	long, all := strings.Contains(letters, "l"), strings.Contains(letters, "a")
	result := 0
	for i, name := range names {
		where := c.absolute(name)
		f := c.files.get(where)
		if f == nil {
			fmt.Fprintf(c.std.Err, "ls: cannot access '%s': No such file or directory\n", name)
			result = 2
			continue
		}
		if !f.dir || strings.Contains(letters, "d") {
			c.list([]entry{{name, f}}, long)
			continue
		}
		if c.user != "root" && f.owner != c.user && f.mode&0o004 == 0 {
			fmt.Fprintf(c.std.Err, "ls: cannot open directory '%s': Permission denied\n", name)
			result = 2
			continue
		}
		if len(names) > 1 {
			if i > 0 {
				fmt.Fprintln(c.std.Out)
			}
			fmt.Fprintf(c.std.Out, "%s:\n", name)
		}
		var entries []entry
		if all {
			entries = append(entries, entry{".", f}, entry{"..", c.files.get(path.Dir(where))})
		}
		for _, child := range c.files.children(where) {
			if all || strings.Contains(letters, "A") || child[0] != '.' {
				entries = append(entries, entry{child, c.files.get(path.Join(where, child))})
			}
		}
		if long {
			fmt.Fprintf(c.std.Out, "total %d\n", 4*len(entries))
		}
		c.list(entries, long)
	}
	return result
}

// entry is a file by the name under which it is listed.
type entry struct {
	name string
	file *file
}

func (c *call) list(entries []entry, long bool) {
	if !long {
		var names []string
		for _, e := range entries {
			names = append(names, e.name)
		}
		c.print(names)
		return
	}
	width := 1
	for _, e := range entries {
		width = max(width, len(strconv.Itoa(e.file.size)))
	}
	for _, e := range entries {
		links := 1
		if e.file.dir {
			links = 2
		}
		fmt.Fprintf(c.std.Out, "%s %d %s %s %*d %s %s\n", modeText(e.file), links, e.file.owner, e.file.owner, width, e.file.size,
			e.file.modified.UTC().Format("Jan _2 15:04"), e.name)
	}
}

func modeText(f *file) string {
	out := []byte("----------")
	if f.dir {
		out[0] = 'd'
	}
	for i, letter := range []byte("rwxrwxrwx") {
		if f.mode>>(8-i)&1 == 1 {
			out[1+i] = letter
		}
	}
	if f.mode&0o1000 != 0 {
		out[9] = 't'
	}
	return string(out)
}

func mkdir(c *call) int {
	letters, names := c.options()
	result := 0
	for _, name := range names {
		where := c.absolute(name)
		parents := []string{where}
		if strings.Contains(letters, "p") {
			for p := path.Dir(where); c.files.get(p) == nil && len(parents) < 32; p = path.Dir(p) {
				parents = append([]string{p}, parents...)
			}
		}
		for _, dir := range parents {
			fault := ""
			parent := c.files.get(path.Dir(dir))
			switch {
			case c.files.get(dir) != nil:
				if !strings.Contains(letters, "p") {
					fault = "File exists"
				}
			case parent == nil:
				fault = "No such file or directory"
			case !c.mayWriteIn(parent):
				fault = "Permission denied"
			default:
				fault = c.files.put(dir, &file{dir: true, mode: 0o755, owner: c.user, size: 4096, modified: c.cfg.Now()})
			}
			if fault != "" {
				result = c.fail(1, "cannot create directory ‘%s’: %s", name, fault)
				break
			}
		}
	}
	return result
}

func rm(c *call) int {
	letters, names := c.options()
	force, all := strings.Contains(letters, "f"), strings.ContainsAny(letters, "rR") || c.words[0] == "rmdir"
	result := 0
	for _, name := range names {
		where := c.absolute(name)
		f := c.files.get(where)
		fault := ""
		switch {
		case f == nil:
			if !force {
				fault = "No such file or directory"
			}
		case f.dir && !all:
			fault = "Is a directory"
		case where == "/":
			fmt.Fprintln(c.std.Err, "rm: it is dangerous to operate recursively on '/'\nrm: use --no-preserve-root to override this failsafe")
			result = 1
			continue
		case !c.mayWriteIn(c.files.get(path.Dir(where))) && f.owner != c.user:
			fault = "Permission denied"
		default:
			for _, child := range c.below(where) {
				c.files.remove(child)
			}
			fault = c.files.remove(where)
		}
		if fault != "" {
			result = c.fail(1, "cannot remove '%s': %s", name, fault)
		}
	}
	return result
}

// below lists everything in a folder and its folders.
func (c *call) below(dir string) []string {
	var out []string
	for _, tree := range []map[string]*file{c.files.base, c.files.over} {
		for where := range tree {
			if strings.HasPrefix(where, strings.TrimSuffix(dir, "/")+"/") && c.files.get(where) != nil {
				out = append(out, where)
			}
		}
	}
	return out
}

func touch(c *call) int {
	_, names := c.options()
	result := 0
	for _, name := range names {
		where := c.absolute(name)
		fault := c.mayWrite(where)
		if fault == "Is a directory" {
			continue
		}
		if fault == "" {
			fault = c.files.write(where, c.files.content(where), c.user, c.cfg.Now())
		}
		if fault != "" {
			result = c.fail(1, "cannot touch '%s': %s", name, fault)
		}
	}
	return result
}

// target is where cp and mv put a file: into a folder under its own name.
func (c *call) target(source, to string) string {
	where := c.absolute(to)
	if f := c.files.get(where); f != nil && f.dir {
		return path.Join(where, path.Base(source))
	}
	return where
}

func cp(c *call) int { return c.transfer(false) }
func mv(c *call) int { return c.transfer(true) }

func (c *call) transfer(removes bool) int {
	_, names := c.options()
	if len(names) < 2 {
		return c.fail(1, "missing destination file operand after '%s'", strings.Join(names, ""))
	}
	result := 0
	to := names[len(names)-1]
	for _, name := range names[:len(names)-1] {
		where := c.absolute(name)
		f := c.files.get(where)
		fault := ""
		switch {
		case f == nil:
			result = c.fail(1, "cannot stat '%s': No such file or directory", name)
			continue
		case f.dir && !removes:
			result = c.fail(1, "-r not specified; omitting directory '%s'", name)
			continue
		case f.private && c.user != "root" && f.owner != c.user:
			fault = "Permission denied"
		}
		target := c.target(name, to)
		if fault == "" {
			fault = c.mayWrite(target)
		}
		if fault == "" {
			copied := *f
			copied.owner, copied.modified = c.user, c.cfg.Now()
			fault = c.files.put(target, &copied)
		}
		if fault == "" && removes {
			fault = c.files.remove(where)
		}
		if fault != "" {
			result = c.fail(1, "cannot create regular file '%s': %s", to, fault)
		}
	}
	return result
}

func chmod(c *call) int {
	var names []string
	for _, w := range c.words[1:] {
		if w != "-R" && w != "-f" && w != "-v" {
			names = append(names, w)
		}
	}
	if len(names) < 2 {
		return c.fail(1, "missing operand")
	}
	mode, result := names[0], 0
	for _, name := range names[1:] {
		where := c.absolute(name)
		f := c.files.get(where)
		switch {
		case f == nil:
			result = c.fail(1, "cannot access '%s': No such file or directory", name)
			continue
		case c.user != "root" && f.owner != c.user:
			result = c.fail(1, "changing permissions of '%s': Operation not permitted", name)
			continue
		}
		changed := *f
		if bits, err := strconv.ParseUint(mode, 8, 12); err == nil {
			changed.mode = uint32(bits)
		} else if strings.Contains(mode, "x") && strings.Contains(mode, "+") {
			changed.mode |= 0o111
		} else if strings.Contains(mode, "w") && strings.Contains(mode, "+") {
			changed.mode |= 0o200
		}
		c.files.put(where, &changed)
	}
	return result
}

func statFile(c *call) int {
	_, names := c.options()
	result := 0
	for _, name := range names {
		f := c.files.get(c.absolute(name))
		if f == nil {
			result = c.fail(1, "cannot statx '%s': No such file or directory", name)
			continue
		}
		kind := "regular file"
		if f.dir {
			kind = "directory"
		}
		fmt.Fprintf(c.std.Out, "  File: %s\n  Size: %-10d\tBlocks: 8          IO Block: 4096   %s\nAccess: (%04o/%s)  Uid: (%5s/%8s)   Gid: (%5s/%8s)\nModify: %s\n",
			name, f.size, kind, f.mode, modeText(f), uidOf(f.owner), f.owner, uidOf(f.owner), f.owner, f.modified.UTC().Format("2006-01-02 15:04:05.000000000 -0700"))
	}
	return result
}

func fileKind(c *call) int {
	_, names := c.options()
	for _, name := range names {
		f := c.files.get(c.absolute(name))
		kind := "ASCII text"
		switch {
		case f == nil:
			kind = fmt.Sprintf("cannot open `%s' (No such file or directory)", name)
		case f.dir:
			kind = "directory"
		case f.program != "":
			kind = "ELF 64-bit LSB pie executable, x86-64, version 1 (SYSV), dynamically linked, interpreter /lib64/ld-linux-x86-64.so.2, for GNU/Linux 3.2.0, stripped"
		case f.content == "":
			kind = "empty"
		}
		fmt.Fprintf(c.std.Out, "%s: %s\n", name, kind)
	}
	return 0
}

func find(c *call) int {
	root, name := ".", ""
	words := c.words[1:]
	for i, w := range words {
		switch {
		case i == 0 && !strings.HasPrefix(w, "-"):
			root = w
		case (w == "-name" || w == "-iname") && i+1 < len(words):
			name = words[i+1]
		}
	}
	where := c.absolute(root)
	if c.files.get(where) == nil {
		return c.fail(1, "‘%s’: No such file or directory", root)
	}
	var visit func(where, shown string, depth int)
	visit = func(where, shown string, depth int) {
		if matches, _ := path.Match(name, path.Base(where)); name == "" || matches {
			fmt.Fprintln(c.std.Out, shown)
		}
		if f := c.files.get(where); depth > 16 || !f.dir || f.mode&0o004 == 0 && c.user != "root" && f.owner != c.user {
			return
		}
		for _, child := range c.files.children(where) {
			visit(path.Join(where, child), strings.TrimSuffix(shown, "/")+"/"+child, depth+1)
		}
	}
	visit(where, root, 0)
	return 0
}

func readlink(c *call) int {
	_, names := c.options()
	for _, name := range names {
		if c.words[0] == "realpath" || c.files.get(c.absolute(name)) != nil && len(c.words) > 2 {
			fmt.Fprintln(c.std.Out, c.absolute(name))
		}
	}
	return 0
}

func mktemp(c *call) int {
	letters, _ := c.options()
	name := fmt.Sprintf("/tmp/tmp.%010d", len(c.files.over)*7919+104729)
	entry := &file{mode: 0o600, owner: c.user, modified: c.cfg.Now()}
	if strings.Contains(letters, "d") {
		entry.dir, entry.mode = true, 0o700
	}
	if fault := c.files.put(name, entry); fault != "" {
		return c.fail(1, "failed to create file via template: %s", fault)
	}
	fmt.Fprintln(c.std.Out, name)
	return 0
}

func du(c *call) int {
	_, names := c.options()
	if len(names) == 0 {
		names = []string{"."}
	}
	for _, name := range names {
		fmt.Fprintf(c.std.Out, "%d\t%s\n", 4*(1+len(c.below(c.absolute(name)))), name)
	}
	return 0
}

func df(c *call) int {
	if letters, _ := c.options(); strings.Contains(letters, "h") {
		fmt.Fprint(c.std.Out, "Filesystem      Size  Used Avail Use% Mounted on\nudev            1.9G     0  1.9G   0% /dev\ntmpfs           393M  512K  392M   1% /run\n/dev/vda1        39G  3.4G   34G  10% /\ntmpfs           2.0G     0  2.0G   0% /dev/shm\n")
		return 0
	}
	fmt.Fprint(c.std.Out, "Filesystem     1K-blocks    Used Available Use% Mounted on\nudev             1989004       0   1989004   0% /dev\ntmpfs             401784     512    401272   1% /run\n/dev/vda1       40972512 3514208  35599088  10% /\ntmpfs            2008904       0   2008904   0% /dev/shm\n")
	return 0
}

func mount(c *call) int {
	if len(c.words) > 1 {
		return deniedUnlessRoot(c)
	}
	for line := range strings.Lines(c.files.content("/proc/mounts")) {
		f := strings.Fields(line)
		fmt.Fprintf(c.std.Out, "%s on %s type %s (%s)\n", f[0], f[1], f[2], f[3])
	}
	return 0
}

// dd copies as cat does; its operands name files.
func dd(c *call) int {
	var from []string
	to := ""
	for _, w := range c.words[1:] {
		if name, ok := strings.CutPrefix(w, "if="); ok {
			from = []string{name}
		}
		if name, ok := strings.CutPrefix(w, "of="); ok {
			to = name
		}
	}
	text, ok := c.input(from)
	if !ok {
		return 1
	}
	if to == "" {
		fmt.Fprint(c.std.Out, text)
	} else {
		out, done, err := c.create(to, false)
		if err != nil {
			return c.fail(1, "failed to open '%s'", err)
		}
		fmt.Fprint(out, text)
		done()
	}
	fmt.Fprintf(c.std.Err, "%d+1 records in\n%d+1 records out\n%d bytes copied, 0.000214 s, %d kB/s\n", len(text)/512, len(text)/512, len(text), len(text)*4)
	return 0
}
