package prove

import "github.com/crillab/gophersat/solver"

// statement is a boolean formula over named variables. The zero value holds always.
type statement struct {
	form  form
	name  string // of a variable
	parts []statement
}

type form uint8

const (
	truth form = iota
	falsehood
	named
	negation
	conjunction
	disjunction
)

func variable(name string) statement { return statement{form: named, name: name} }

func not(s statement) statement {
	switch s.form {
	case truth:
		return statement{form: falsehood}
	case falsehood:
		return statement{}
	case negation:
		return s.parts[0]
	}
	return statement{form: negation, parts: []statement{s}}
}

func every(of ...statement) statement { return joined(conjunction, truth, falsehood, of) }

func either(of ...statement) statement { return joined(disjunction, falsehood, truth, of) }

// joined combines statements. It leaves out neutral ones, and returns the deciding one if
// that is among them.
func joined(as, neutral, decides form, of []statement) statement {
	rest := make([]statement, 0, len(of))
	for _, s := range of {
		switch s.form {
		case decides:
			return s
		case neutral:
		case as:
			rest = append(rest, s.parts...)
		default:
			rest = append(rest, s)
		}
	}
	switch len(rest) {
	case 0:
		return statement{form: neutral}
	case 1:
		return rest[0]
	}
	return statement{form: as, parts: rest}
}

func implies(a, b statement) statement { return either(not(a), b) }

// justOne says that exactly one of two holds.
func justOne(a, b statement) statement { return every(either(a, b), either(not(a), not(b))) }

// oneOf says that exactly one of the named variables holds.
func oneOf(names []string) statement {
	any := make([]statement, len(names))
	for i, name := range names {
		any[i] = variable(name)
	}
	all := []statement{either(any...)}
	later := func(i int) statement { return variable("after " + names[i]) } // one that comes after it holds
	for i := range any[:max(len(any), 1)-1] {
		all = append(all, implies(any[i], not(later(i))), implies(any[i+1], later(i)), implies(later(i+1), later(i)))
	}
	return every(all...)
}

// solve finds values of the variables for which the statement holds; nil if there are none.
// Variables that are left out may have any value.
func solve(s statement) map[string]bool {
	c := clauses{numbers: map[string]int{}}
	c.add(s)
	if len(c.list) == 0 {
		return map[string]bool{}
	}
	problem := solver.New(solver.ParseSlice(c.list))
	if problem.Solve() != solver.Sat {
		return nil
	}
	values := problem.Model()
	model := make(map[string]bool, len(c.numbers))
	for name, number := range c.numbers {
		model[name] = values[number-1]
	}
	return model
}

// clauses is the input of the solver, in conjunctive normal form: of each clause at least one
// literal must hold. A negative number is a negated variable.
type clauses struct {
	numbers map[string]int
	last    int
	list    [][]int
}

func (c *clauses) add(s statement) {
	switch s.form {
	case truth:
	case falsehood:
		c.list = append(c.list, []int{})
	case conjunction:
		for _, part := range s.parts {
			c.add(part)
		}
	case disjunction:
		c.list = append(c.list, c.numbersOf(s.parts, true))
	default:
		c.list = append(c.list, []int{c.number(s, true)})
	}
}

func (c *clauses) numbersOf(parts []statement, needed bool) []int {
	out := make([]int, len(parts))
	for i, part := range parts {
		out[i] = c.number(part, needed)
	}
	return out
}

// number returns a literal for a statement (Tseitin's transformation, with one direction
// only). If it is needed, the literal implies the statement; else the statement implies it.
func (c *clauses) number(s statement, needed bool) int {
	switch s.form {
	case named:
		n := c.numbers[s.name]
		if n == 0 {
			n = c.next()
			c.numbers[s.name] = n
		}
		return n
	case negation:
		return -c.number(s.parts[0], !needed)
	}
	n, sign := c.next(), 1
	if !needed {
		sign = -1
	}
	parts := c.numbersOf(s.parts, needed)
	if all := s.form == conjunction || s.form == truth; all == needed {
		for _, part := range parts {
			c.list = append(c.list, []int{-sign * n, sign * part})
		}
		return n
	}
	clause := []int{-sign * n}
	for _, part := range parts {
		clause = append(clause, sign*part)
	}
	c.list = append(c.list, clause)
	return n
}

func (c *clauses) next() int {
	c.last++
	return c.last
}
