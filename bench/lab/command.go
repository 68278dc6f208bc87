package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/crossfade-mesh/crossfade/internal/envoybin"
)

// Main is a benchmark as a command: settings from the environment, lines to stdout, progress
// to stderr, and an end when it is interrupted. What went wrong is said after the command's
// name, and makes its exit code 1.
func Main[S any](name string, read func(*Env) S, run func(ctx context.Context, s S, out, progress io.Writer) error) (code int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := Settings(os.Getenv, read)
	if err == nil {
		err = run(ctx, s, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// SayEnvoy says which Envoy is used. It is an error if that is of the wrong version.
func (b Binaries) SayEnvoy(ctx context.Context, progress io.Writer) error {
	version, err := envoybin.CheckVersion(ctx, b.Envoy)
	if err == nil {
		fmt.Fprintf(progress, "Envoy %s, %s\n", version, b.Envoy)
	}
	return err
}
