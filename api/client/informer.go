package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"bocage.dev/bocage"
)

// defaultMaxObjects bounds an informer that was given no bound.
const defaultMaxObjects = 1_000_000

// ErrTooManyObjects ends an informer that would have to hold more than it may.
var ErrTooManyObjects = errors.New("there are more objects than the informer may hold")

// InformerOptions say what an informer follows and whom it tells. The zero value
// follows all objects and tells nobody.
type InformerOptions[T bocage.Resource] struct {
	ListOptions
	// Handle is told of each change, one after the other, after the copy has it.
	// While it runs, nothing else is read: who is slow for long is cut off by the
	// server and begins with a new list, so that what waits stays bounded.
	Handle func(Change[T])
	// Resync is how often Handle is told of every object again, as if it had
	// changed, so that what it missed to do is done. Zero is never.
	Resync time.Duration
	// Indexers name the values by which objects are found with [Informer.ByIndex].
	Indexers map[string]func(T) []string
	// MaxObjects bounds the copy; more end Run with ErrTooManyObjects. Zero is a
	// million.
	MaxObjects int
}

// Change is what became of one object. Was is nil for a new one, Is for one that
// is gone; both are the same object in a resync.
type Change[T bocage.Resource] struct {
	Was, Is T
}

// Informer keeps a copy of the objects of a kind, and tells of their changes. It
// lists, watches, resumes where a watch broke, and lists again where that is too
// long ago; objects that went meanwhile are told of then. Its objects are shared:
// whoever wants to change one copies it first.
type Informer[T bocage.Resource] struct {
	kind    bocage.Kind
	options InformerOptions[T]
	source  source

	handling sync.Mutex // held while the copy changes and Handle is told; before mu

	mu      sync.RWMutex // guards the copy
	objects map[string]T
	index   map[string]map[string]map[string]struct{} // by indexer, value, key
	synced  chan struct{}
	once    sync.Once
}

// source is where an informer reads: a client.
type source interface {
	List(ctx context.Context, kind bocage.Kind, options ListOptions) ([]bocage.Resource, string, error)
	watchOnce(ctx context.Context, kind bocage.Kind, options ListOptions, revision *string, each func(Event) error) error
}

// NewInformer makes an informer of the kind that T is, such as
// *bocage.Application. It reads nothing until Run is called.
func NewInformer[T bocage.Resource](c *Client, options InformerOptions[T]) (*Informer[T], error) {
	return newInformer(c, options)
}

func newInformer[T bocage.Resource](from source, options InformerOptions[T]) (*Informer[T], error) {
	i := &Informer[T]{
		options: options, source: from, objects: map[string]T{}, synced: make(chan struct{}),
		index: map[string]map[string]map[string]struct{}{},
	}
	wanted := reflect.TypeFor[T]()
	for _, kind := range bocage.Kinds() {
		if reflect.TypeOf(kind.New()) == wanted {
			i.kind = kind
		}
	}
	if i.kind.New == nil {
		return nil, fmt.Errorf("there is no kind of %s", wanted)
	}
	if i.options.MaxObjects <= 0 {
		i.options.MaxObjects = defaultMaxObjects
	}
	for name := range options.Indexers {
		i.index[name] = map[string]map[string]struct{}{}
	}
	return i, nil
}

// Run keeps the copy until ctx ends, or until the server refuses for good: the
// kind may not be read, or there are too many objects.
func (i *Informer[T]) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var resyncing sync.WaitGroup
	defer resyncing.Wait()
	defer cancel()
	if i.options.Resync > 0 && i.options.Handle != nil {
		resyncing.Go(func() { i.resync(ctx) })
	}
	revision := ""
	var pause pause
	for {
		began := time.Now()
		err := i.read(ctx, &revision)
		var answer *Error
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrTooManyObjects):
			return err
		case errors.As(err, &answer) && answer.Code == http.StatusGone:
			revision = ""
		case errors.As(err, &answer) && answer.Code < 500 && answer.Code != http.StatusTooManyRequests:
			return err
		}
		if err := pause.after(ctx, began); err != nil {
			return err
		}
	}
}

// read lists if there is nothing to resume, and follows from there.
func (i *Informer[T]) read(ctx context.Context, revision *string) error {
	if *revision == "" {
		objects, at, err := i.source.List(ctx, i.kind, i.options.ListOptions)
		if err != nil {
			return err
		}
		if err := i.replace(objects); err != nil {
			return err
		}
		*revision = at
		i.once.Do(func() { close(i.synced) })
	}
	err := i.source.watchOnce(ctx, i.kind, i.options.ListOptions, revision, func(e Event) error {
		object, ok := e.Object.(T)
		if !ok {
			return fmt.Errorf("a %T came where a %s is expected", e.Object, i.kind.Name)
		}
		return i.apply(object, e.Type == Deleted)
	})
	var fatal *eachError
	if errors.As(err, &fatal) {
		return fatal.err
	}
	return err
}

// replace takes a whole list for the copy, and tells what that changes.
func (i *Informer[T]) replace(list []bocage.Resource) error {
	if len(list) > i.options.MaxObjects {
		return fmt.Errorf("%d of kind %s: %w (%d)", len(list), i.kind.Name, ErrTooManyObjects, i.options.MaxObjects)
	}
	there := make(map[string]bool, len(list))
	for _, o := range list {
		there[o.Meta().NamespacedName()] = true
	}
	for _, object := range i.List() {
		if !there[object.Meta().NamespacedName()] {
			if err := i.apply(object, true); err != nil {
				return err
			}
		}
	}
	for _, o := range list {
		object, ok := o.(T)
		if !ok {
			return fmt.Errorf("a %T came where a %s is expected", o, i.kind.Name)
		}
		if was, ok := i.Get(object.Meta().Namespace, object.Meta().Name); ok && was.Meta().ResourceVersion == object.Meta().ResourceVersion {
			continue
		}
		if err := i.apply(object, false); err != nil {
			return err
		}
	}
	return nil
}

// apply changes the copy by one object and tells of it.
func (i *Informer[T]) apply(object T, gone bool) error {
	i.handling.Lock()
	defer i.handling.Unlock()
	key := object.Meta().NamespacedName()
	var change Change[T]
	i.mu.Lock()
	was, existed := i.objects[key]
	if !gone && !existed && len(i.objects) >= i.options.MaxObjects {
		i.mu.Unlock()
		return fmt.Errorf("%s %s: %w (%d)", i.kind.Name, key, ErrTooManyObjects, i.options.MaxObjects)
	}
	if existed {
		change.Was = was
		i.unindex(key, was)
		delete(i.objects, key)
	}
	if !gone {
		change.Is = object
		i.objects[key] = object
		i.reindex(key, object)
	}
	i.mu.Unlock()
	if i.options.Handle != nil && (existed || !gone) {
		i.options.Handle(change)
	}
	return nil
}

func (i *Informer[T]) reindex(key string, object T) {
	for name, values := range i.options.Indexers {
		for _, value := range values(object) {
			if i.index[name][value] == nil {
				i.index[name][value] = map[string]struct{}{}
			}
			i.index[name][value][key] = struct{}{}
		}
	}
}

func (i *Informer[T]) unindex(key string, object T) {
	for name, values := range i.options.Indexers {
		for _, value := range values(object) {
			delete(i.index[name][value], key)
			if len(i.index[name][value]) == 0 {
				delete(i.index[name], value)
			}
		}
	}
}

// resync tells of every object again, now and then.
func (i *Informer[T]) resync(ctx context.Context) {
	ticker := time.NewTicker(i.options.Resync)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		for _, object := range i.List() {
			if ctx.Err() != nil {
				return
			}
			i.again(object)
		}
	}
}

// again tells of an object once more, unless it changed meanwhile.
func (i *Informer[T]) again(object T) {
	i.handling.Lock()
	defer i.handling.Unlock()
	now, ok := i.Get(object.Meta().Namespace, object.Meta().Name)
	if ok && now.Meta().ResourceVersion == object.Meta().ResourceVersion {
		i.options.Handle(Change[T]{object, object})
	}
}

// Synced is closed once the copy holds what the first list had.
func (i *Informer[T]) Synced() <-chan struct{} { return i.synced }

// Len is how many objects there are.
func (i *Informer[T]) Len() int {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return len(i.objects)
}

// Get returns one object; the namespace of a cluster-wide kind is empty.
func (i *Informer[T]) Get(namespace, name string) (T, bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	object, ok := i.objects[(&bocage.ObjectMeta{Namespace: namespace, Name: name}).NamespacedName()]
	return object, ok
}

// List returns all objects, sorted by namespace and name.
func (i *Informer[T]) List() []T {
	i.mu.RLock()
	defer i.mu.RUnlock()
	keys := make([]string, 0, len(i.objects))
	for key := range i.objects {
		keys = append(keys, key)
	}
	return i.sorted(keys)
}

// ByIndex returns the objects that an indexer gave a value, sorted by namespace
// and name.
func (i *Informer[T]) ByIndex(indexer, value string) []T {
	i.mu.RLock()
	defer i.mu.RUnlock()
	keys := make([]string, 0, len(i.index[indexer][value]))
	for key := range i.index[indexer][value] {
		keys = append(keys, key)
	}
	return i.sorted(keys)
}

func (i *Informer[T]) sorted(keys []string) []T {
	slices.Sort(keys)
	objects := make([]T, len(keys))
	for n, key := range keys {
		objects[n] = i.objects[key]
	}
	return objects
}
