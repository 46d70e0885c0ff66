package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"bocage.dev/bocage/dataplane/bpf"
)

// loaded keeps programs that were verified for one test, with maps as they are made, for
// the next test that wants the same: verification is most of what a test costs.
var loaded shelf

type shelf struct {
	mu   sync.Mutex // guards sets
	sets []*set     // the one that was given back last is the last
}

// mostSets bounds what lies on the shelf, of any configuration.
const mostSets = 16

// set is what was loaded by a configuration.
type set struct {
	spec    string // the configuration, but for what is drawn
	seeds   []uint64
	made    map[string][]ebpf.MapKV // what maps begin with
	objects *bpf.KernelObjects
}

// load is for the Opens of one PinDir. The test gives back what it took when all else of
// it has ended.
func (s *shelf) load(t *testing.T) loader {
	var one *set
	return func(spec *ebpf.CollectionSpec, options *ebpf.CollectionOptions) (*bpf.KernelObjects, error) {
		if one == nil {
			taken, err := s.take(spec, options)
			if err != nil {
				return nil, err
			}
			one = taken
			t.Cleanup(func() { s.giveBack(t, one) })
		} else if text, _, err := describe(spec); err != nil || text != one.spec {
			return nil, errors.Join(err, errors.New("open state of another layout by open, which loads programs for it"))
		} else if err := one.each(renewOwn); err != nil {
			return nil, err
		}
		if err := spec.Variables["flow_seeds"].Set(one.seeds); err != nil {
			return nil, err
		}
		return cloneOf(one.objects)
	}
}

func (s *shelf) take(spec *ebpf.CollectionSpec, options *ebpf.CollectionOptions) (*set, error) {
	fresh := &set{made: map[string][]ebpf.MapKV{}, objects: &bpf.KernelObjects{}}
	var err error
	if fresh.spec, fresh.seeds, err = describe(spec); err != nil {
		return nil, err
	}
	s.mu.Lock()
	i := slices.IndexFunc(s.sets, func(other *set) bool { return other.spec == fresh.spec })
	if i >= 0 {
		one := s.sets[i]
		s.sets = slices.Delete(s.sets, i, i+1)
		s.mu.Unlock()
		return one, nil
	}
	s.mu.Unlock()
	for name, m := range spec.Maps {
		fresh.made[name] = m.Contents
	}
	return fresh, spec.LoadAndAssign(fresh.objects, options)
}

// each goes through the maps of a set, also those that no process shares with the next.
func (s *set) each(do func(name string, m *ebpf.Map) error) error {
	all := reflect.ValueOf(s.objects.KernelMaps)
	for i := range all.NumField() {
		name := all.Type().Field(i).Tag.Get("ebpf")
		if m, is := all.Field(i).Interface().(*ebpf.Map); is && m != nil && !strings.HasPrefix(name, ".") {
			if err := do(name, m); err != nil {
				return fmt.Errorf("renew map %s: %w", name, err)
			}
		}
	}
	return nil
}

// describe says what a configuration is, and what was drawn at random for it.
func describe(spec *ebpf.CollectionSpec) (text string, seeds []uint64, err error) {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		v := spec.Variables[name]
		value := make([]byte, v.Size())
		if name == "flow_seeds" {
			seeds = make([]uint64, v.Size()/8)
			err = errors.Join(err, v.Get(&seeds))
		} else {
			err = errors.Join(err, v.Get(&value))
		}
		fmt.Fprintf(&b, "%s %x\n", name, value)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		fmt.Fprintln(&b, name, spec.Maps[name].MaxEntries)
	}
	return b.String(), seeds, err
}

// giveBack puts a set on the shelf, as new, unless its test failed.
func (s *shelf) giveBack(t *testing.T, one *set) {
	if t.Failed() {
		one.objects.Close()
		return
	}
	if err := one.each(func(name string, m *ebpf.Map) error { return renew(m, one.made[name]) }); err != nil {
		t.Error(err)
		one.objects.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets = append(s.sets, one)
	if len(s.sets) > mostSets {
		s.sets[0].objects.Close()
		s.sets = s.sets[1:]
	}
}

// renewOwn makes a map that each load of the programs has of its own what it was.
func renewOwn(name string, m *ebpf.Map) error {
	if isShared(name) {
		return nil
	}
	return renew(m, nil)
}

// renew makes a map what it was when it was made.
func renew(m *ebpf.Map, made []ebpf.MapKV) error {
	switch m.Type() {
	case ebpf.RingBuf:
		if err := drain(m); err != nil {
			return err
		}
	case ebpf.Array, ebpf.PerCPUArray:
		if err := zero(m); err != nil {
			return err
		}
	default:
		var keys [][]byte
		key, next := []byte(nil), make([]byte, m.KeySize())
		err := m.NextKey(nil, next)
		for ; err == nil; err = m.NextKey(key, next) {
			key = slices.Clone(next)
			keys = append(keys, key)
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for _, key := range keys {
			if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
	}
	for _, row := range made {
		if err := m.Put(row.Key, row.Value); err != nil {
			return err
		}
	}
	return nil
}

func zero(m *ebpf.Map) error {
	if m.Flags()&unix.BPF_F_MMAPABLE != 0 {
		memory, err := mapMemory(m, unix.PROT_READ|unix.PROT_WRITE)
		if err != nil {
			return err
		}
		clear(memory)
		return unix.Munmap(memory)
	}
	row := make([]byte, m.ValueSize())
	value := any(row)
	if m.Type() == ebpf.PerCPUArray {
		value = slices.Repeat([][]byte{row}, ebpf.MustPossibleCPU())
	}
	for i := range m.MaxEntries() {
		if err := m.Put(i, value); err != nil {
			return err
		}
	}
	return nil
}

// drain takes what nobody has read.
func drain(m *ebpf.Map) error {
	reader, err := ringbuf.NewReader(m)
	if err != nil {
		return err
	}
	defer reader.Close()
	reader.SetDeadline(time.Now())
	var record ringbuf.Record
	for err == nil {
		err = reader.ReadInto(&record)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// cloneOf has maps and programs of its own to close.
func cloneOf(objects *bpf.KernelObjects) (*bpf.KernelObjects, error) {
	clone := &bpf.KernelObjects{KernelVariables: objects.KernelVariables}
	var errs []error
	for _, part := range [][2]reflect.Value{
		{reflect.ValueOf(&objects.KernelMaps).Elem(), reflect.ValueOf(&clone.KernelMaps).Elem()},
		{reflect.ValueOf(&objects.KernelPrograms).Elem(), reflect.ValueOf(&clone.KernelPrograms).Elem()},
	} {
		for i := range part[0].NumField() {
			switch one := part[0].Field(i).Interface().(type) {
			case *ebpf.Map:
				other, err := one.Clone()
				part[1].Field(i).Set(reflect.ValueOf(other))
				errs = append(errs, err)
			case *ebpf.Program:
				other, err := one.Clone()
				part[1].Field(i).Set(reflect.ValueOf(other))
				errs = append(errs, err)
			}
		}
	}
	return clone, errors.Join(errs...)
}
