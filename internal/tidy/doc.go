// Package tidy holds the laws of the house as tests: who may import whom, where
// state may live, how packages and tests are named, which words are not used.
//
// Each failure says which law is broken, where, and why the law is there. The
// tests read source files only: they build and run nothing, need no root, and
// change nothing. A law that is in the way is changed here, in the open, or
// gets an exception with its reason; it is not worked around.
package tidy
