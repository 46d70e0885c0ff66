package compile

// eachMerged walks two sorted lists together: it visits every element of either,
// and those that compare equal as a pair. x is nil where only b has one, y where
// only a has.
func eachMerged[T any](a, b []T, compare func(x, y T) int, visit func(x, y *T)) {
	for len(a) > 0 || len(b) > 0 {
		order := 0
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		default:
			order = compare(a[0], b[0])
		}
		switch {
		case order < 0:
			visit(&a[0], nil)
			a = a[1:]
		case order > 0:
			visit(nil, &b[0])
			b = b[1:]
		default:
			visit(&a[0], &b[0])
			a, b = a[1:], b[1:]
		}
	}
}

// eachChange visits the objects that are gone from a list and those that came. One
// that others of the same name took the place of is both. Lists that are not in
// order cost more visits, and no fewer.
func eachChange[T comparable](was, now []T, compare func(x, y T) int, gone, come func(T)) {
	first, last := 0, 0
	for first < len(was) && first < len(now) && was[first] == now[first] {
		first++
	}
	was, now = was[first:], now[first:]
	for last < len(was) && last < len(now) && was[len(was)-1-last] == now[len(now)-1-last] {
		last++
	}
	eachMerged(was[:len(was)-last], now[:len(now)-last], func(x, y T) int {
		if x == y {
			return 0
		}
		return compare(x, y)
	}, func(x, y *T) {
		if x != nil && y != nil && *x == *y {
			return
		}
		if x != nil {
			gone(*x)
		}
		if y != nil {
			come(*y)
		}
	})
}
