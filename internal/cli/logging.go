package cli

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
)

// addLog gives a long-running verb its log flags and, when it runs, its logger.
func addLog(cmd *cobra.Command, s streams) func() (*slog.Logger, error) {
	var level string
	var asJSON bool
	addChoice(cmd, &level, "log-level", "", "info", "debug, info, warn or error", "debug", "info", "warn", "error")
	cmd.Flags().BoolVar(&asJSON, "log-json", false, "log in JSON")
	return func() (*slog.Logger, error) {
		var l slog.Level
		if err := l.UnmarshalText([]byte(level)); err != nil {
			return nil, fmt.Errorf("--log-level: %w", err)
		}
		opts := &slog.HandlerOptions{Level: l}
		if asJSON {
			return slog.New(slog.NewJSONHandler(s.err, opts)), nil
		}
		return slog.New(slog.NewTextHandler(s.err, opts)), nil
	}
}
