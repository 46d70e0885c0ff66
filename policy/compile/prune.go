package compile

import "encoding/binary"

// What was once found out is kept, for it may be asked again: what cells come to that
// the same statements cover, and what classes have in common that nobody is in just
// now. Of statements that were withdrawn it never is. So it is thrown away now and
// then, when nobody waits.

// mostLeft is how many statements and classes are left behind before what is known of
// them is thrown away.
const mostLeft = 1 << 12

// prune throws away what is known of statements that were withdrawn and of classes
// that nobody is in.
func (c *compiler) prune() {
	g := c.grid
	if c.dead-c.pruned < c.left && g.sources.idle()+g.targets.idle() < c.left {
		return
	}
	c.pruned = c.dead
	for _, known := range [2]map[string]int32{c.decisions.byCause, g.tables.byCause} {
		for cause := range known {
			if c.namesWithdrawn(cause) {
				delete(known, cause)
			}
		}
	}
	g.sources.prune()
	g.targets.prune()
	for p := range g.bases {
		if len(g.sources.list[p.from].members) == 0 || len(g.targets.list[p.to].members) == 0 {
			delete(g.bases, p)
		}
	}
}

// namesWithdrawn reports whether one of the statements of a cause was withdrawn.
func (c *compiler) namesWithdrawn(cause string) bool {
	for at := 0; at < len(cause); at += 4 {
		if i := binary.LittleEndian.Uint32([]byte(cause[at : at+4])); c.statements[i].from.empty() {
			return true // only what says nothing any more is about nobody
		}
	}
	return false
}

// idle counts the classes that were made since the last time they were pruned.
func (k *classes) idle() int { return len(k.list) - k.pruned }

// prune throws away what is known of classes that nobody is in. Their numbers are not
// used again.
func (k *classes) prune() {
	for sum, i := range k.bySum {
		if len(k.list[i].members) == 0 {
			delete(k.bySum, sum)
			k.list[i] = class{}
		}
	}
	k.pruned = len(k.list)
}
