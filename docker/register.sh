#!/bin/sh
# Tell a SuperLink which devices may join: register.sh FOLDER_OF_PUBLIC_KEYS ADDRESS CA_CERTIFICATE
# Devices that it knows already are passed over, so it may run again at any time.
set -eu

mkdir -p "$FLWR_HOME"
cat > "$FLWR_HOME/config.toml" << TOML
[superlink.docker]
address = "$2"
root-certificates = "$3"
TOML

for key in "$1"/*.pub; do
  [ -e "$key" ] || { echo "no public key (*.pub) in $1" >&2; exit 1; }
  name=$(basename "$key" .pub)
  if said=$(flwr supernode register "$key" docker --name "$name" 2>&1); then
    echo "$name: registered"
  else
    case $said in
      *"already in use"*) echo "$name: known" ;;
      *) printf '%s: refused\n%s\n' "$name" "$said" >&2; exit 1 ;;
    esac
  fi
done
