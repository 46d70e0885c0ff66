package etcd

import (
	"context"
	"log/slog"
	"runtime"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newZap is a logger for etcd that writes to ours, a level or two lower: what
// etcd calls information is detail to us. onFatal is called instead of ending the
// process.
func newZap(logger *slog.Logger, onFatal func(message string)) *zap.Logger {
	return zap.New(&core{logger: logger}, zap.WithFatalHook(endHook(onFatal)), zap.WithPanicHook(endHook(onFatal)))
}

type core struct {
	logger *slog.Logger
	fields []zapcore.Field
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case l == zapcore.ErrorLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// harmless says which of etcd's errors are none: at the first start of a member,
// and at the end of every server.
func harmless(message string) bool {
	return message == "failed to update storage version" || message == "setting up serving from embedded etcd failed."
}

// Enabled implements zapcore.LevelEnabler.
func (c *core) Enabled(l zapcore.Level) bool {
	// Panics and fatals must reach their hooks even if nobody listens.
	return l >= zapcore.DPanicLevel || c.logger.Enabled(context.Background(), level(l))
}

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{logger: c.logger, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

// Check implements zapcore.Core.
func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c *core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(values)
	}
	for _, f := range fields {
		f.AddTo(values)
	}
	attributes := []slog.Attr{slog.String("event", entry.Message)}
	for key, value := range values.Fields {
		attributes = append(attributes, slog.Any(key, value))
	}
	at := level(entry.Level)
	if harmless(entry.Message) {
		at = slog.LevelDebug
	}
	c.logger.LogAttrs(context.Background(), at, "etcd", attributes...)
	return nil
}

// Sync implements zapcore.Core.
func (c *core) Sync() error { return nil }

// endHook ends only the goroutine that cannot go on.
type endHook func(message string)

// OnWrite implements zapcore.CheckWriteHook.
func (h endHook) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(values)
	}
	message := entry.Message
	if cause, ok := values.Fields["error"].(string); ok {
		message += ": " + cause
	}
	h(message)
	runtime.Goexit()
}
