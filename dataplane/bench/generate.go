package main

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package main -target bpfel -output-stem flood flood flood.c -- -mcpu=v3 -Wall -nostdinc
