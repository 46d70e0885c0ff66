package bocage

// eachMerged walks two sorted lists together. It visits elements that compare equal as a
// pair, and every other one alone: x is nil if only b has it, y if only a has it.
func eachMerged[T any](a, b []T, compare func(x, y T) int, visit func(x, y *T)) {
	for len(a) > 0 && len(b) > 0 {
		switch order := compare(a[0], b[0]); {
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
	for i := range a {
		visit(&a[i], nil)
	}
	for i := range b {
		visit(nil, &b[i])
	}
}
