package embedded

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// slogCore passes what etcd logs as an error, or worse, on to a slog.Logger. Less than that is noise here, and so is what etcd says of its own
// listeners once it is being closed.
type slogCore struct {
	logger  *slog.Logger
	closing *atomic.Bool
	fields  []zapcore.Field
}

// Enabled implements [zapcore.LevelEnabler].
func (c slogCore) Enabled(level zapcore.Level) bool {
	return level > zapcore.ErrorLevel || level == zapcore.ErrorLevel && !c.closing.Load()
}

// With implements [zapcore.Core].
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{logger: c.logger, closing: c.closing, fields: append(slices.Clip(c.fields), fields...)}
}

// startRace is what etcd says when it looks for its storage version before there is one; it looks again after some seconds.
const startRace = "failed to update storage version"

// Check implements [zapcore.Core].
func (c slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) && entry.Message != startRace {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements [zapcore.Core].
func (c slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clip(c.fields), fields...) {
		f.AddTo(values)
	}
	c.logger.LogAttrs(context.Background(), slog.LevelError, "embedded etcd",
		slog.String("event", entry.Message), slog.String("level", entry.Level.String()), slog.Any("fields", values.Fields))
	return nil
}

// Sync implements [zapcore.Core].
func (slogCore) Sync() error { return nil }
