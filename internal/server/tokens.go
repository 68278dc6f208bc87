package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/crossfade-mesh/crossfade/internal/access"
	"github.com/crossfade-mesh/crossfade/internal/access/tokens"
	"github.com/crossfade-mesh/crossfade/internal/atomicfile"
)

// operatorFile, in the data directory, holds the first operator's token.
const operatorFile = "operator.token"

// bootstrap makes an operator's token when there is none that works, or when asked
// to, and returns the file that its secret is in, or "".
func bootstrap(t *tokens.Tokens, dir string, always bool) (string, error) {
	for _, tok := range t.List() {
		if tok.Role == access.Operator && tok.State(time.Now()) == "active" && !always {
			return "", nil
		}
	}
	secret, tok, err := t.Create(tokens.New{Role: access.Operator, Description: "made by the server when it started", By: "server"})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, operatorFile)
	if err := atomicfile.Write(path, []byte(secret+"\n")); err != nil {
		_, revoked := t.Revoke(tok.Accessor)
		return "", errors.Join(fmt.Errorf("operator's token %q: cannot be written: %w", path, err), revoked)
	}
	return path, nil
}

// tokenRequest is the body of PUT /v1/crossfade/tokens.
type tokenRequest struct {
	Role        access.Role `json:"role"`
	Services    []string    `json:"services"`
	Description string      `json:"description"`
	TTL         string      `json:"ttl"` // "24h"
}

// createdToken is its answer, the only one that has a secret.
type createdToken struct {
	tokens.Token
	Secret string `json:"secret"`
}

// createToken lets operators make any token, and owners join tokens for what they own.
func (s *Server) createToken(w http.ResponseWriter, r *http.Request) {
	// Nothing that a stranger sends is decoded.
	if !s.allowed(w, r, access.Need{Kind: access.Known}) {
		return
	}
	var in tokenRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		http.Error(w, "token: the request can't be read: "+err.Error(), http.StatusBadRequest)
		return
	}
	need := tokenNeed(in.Role, in.Services)
	need.Target = fmt.Sprintf("%s %v", in.Role, in.Services)
	if !s.allowed(w, r, need) {
		return
	}
	n := tokens.New{Role: in.Role, Services: in.Services, Description: in.Description, By: r.Context().Value(visitKey{}).(*visit).caller.String()}
	if in.TTL != "" {
		ttl, err := time.ParseDuration(in.TTL)
		if err != nil || ttl <= 0 {
			http.Error(w, fmt.Sprintf("token: ttl %q: want a duration such as 24h", in.TTL), http.StatusBadRequest)
			return
		}
		n.TTL = ttl
	}
	secret, tok, err := s.tokens.Create(n)
	switch {
	case errors.Is(err, tokens.ErrInvalid):
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	s.answer(w, createdToken{tok, secret})
}

// tokenNeed is what making or revoking a token takes.
func tokenNeed(role access.Role, services []string) access.Need {
	if role == access.Join {
		return access.Need{Kind: access.Write, Services: services}
	}
	return access.Need{Kind: access.Operate}
}

func (s *Server) listTokens(w http.ResponseWriter, r *http.Request) {
	if s.allowed(w, r, access.Need{Kind: access.Audit}) {
		s.answer(w, s.tokens.List())
	}
}

// revokeToken ends the token, the streams opened with it, and the identities of all
// who joined with it.
func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) {
	accessor := r.PathValue("accessor")
	need := access.Need{Kind: access.Operate}
	if tok, ok := s.tokens.Get(accessor); ok {
		need = tokenNeed(tok.Role, tok.Services)
	}
	need.Target = "token " + accessor
	if !s.allowed(w, r, need) {
		return
	}
	tok, err := s.tokens.Revoke(accessor)
	switch {
	case errors.Is(err, tokens.ErrUnknown):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		s.answer(w, tok)
	}
}

// audit shows the last n writes, newest first.
func (s *Server) audit(w http.ResponseWriter, r *http.Request) {
	if !s.allowed(w, r, access.Need{Kind: access.Audit}) {
		return
	}
	n := 100
	if raw := r.URL.Query().Get("n"); raw != "" {
		var err error
		if n, err = strconv.Atoi(raw); err != nil || n < 0 {
			http.Error(w, fmt.Sprintf("audit: n %q: want a number of entries", raw), http.StatusBadRequest)
			return
		}
	}
	entries := s.tokens.Trail(n)
	if entries == nil {
		entries = []tokens.Entry{}
	}
	s.answer(w, entries)
}

// allowed answers 403, and is false, when the caller lacks the right.
func (s *Server) allowed(w http.ResponseWriter, r *http.Request, n access.Need) bool {
	if err := authorize(r, n); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return false
	}
	return true
}
