// Package bpf is the eBPF side of the dataplane: C sources, one file per hook
// and one header per concern, and the object that clang made of them.
//
// Read enforce.h first: it is the path of a packet. abi.h is the contract with
// the Go side. The object and its Go twins are committed, so building needs no
// clang; `go generate` makes them again, byte for byte, with clang 14.
//
// The programs never block, never allocate without bound, and never pass a
// packet that they could not read.
package bpf

import _ "embed"

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -target bpfel -output-stem kernel -type address -type sweep_order -type flow -type batch -type peer -type group -type refused -type rule_key -type decision -type term -type succession -type limit -type ranks -type name -type set_key -type learned_set Kernel kernel.c -- -mcpu=v3 -Wall -nostdinc
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -target bpfel -output-stem frame Frame frame.c -- -mcpu=v3 -Wall -nostdinc

// Contract is the text of abi.h, which names the layout of maps, and ContractOfNames
// that of the part that is about names of the DNS.
//
//go:embed abi.h
var Contract string

//go:embed abi_names.h
var ContractOfNames string

// HeaderOfTags and HeaderOfTracks are the texts of tags.h and track.h, which say what
// some of a row's key and flags mean.
//
//go:embed tags.h
var HeaderOfTags string

//go:embed track.h
var HeaderOfTracks string

// Object is what clang made of kernel.c.
func Object() []byte { return _KernelBytes }
