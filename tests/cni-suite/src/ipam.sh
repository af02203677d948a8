#!/bin/sh
# The checks' IPAM plugin: an address for each container, the last number of its ID; a file for each address that is leased.
folder=@FOLDER@
version=$(grep -o '"cniVersion" *: *"[^"]*"' | head -n 1 | cut -d '"' -f 4)
echo "$CNI_COMMAND $CNI_CONTAINERID" >>"$folder/asked"
if [ -e "$folder/instead-of-$CNI_COMMAND" ]; then . "$folder/instead-of-$CNI_COMMAND"; fi
lease="$folder/leased/$CNI_CONTAINERID"
address="10.88.0.${CNI_CONTAINERID##*[!0-9]}/24"
case $CNI_COMMAND in
ADD)
    : >"$lease"
    case $version in
    0.1.0 | 0.2.0) echo "{\"cniVersion\":\"$version\",\"ip4\":{\"ip\":\"$address\",\"gateway\":\"10.88.0.254\",\"routes\":[{\"dst\":\"10.99.0.0/16\"}]}}" ;;
    0.*) echo "{\"cniVersion\":\"$version\",\"ips\":[{\"version\":\"4\",\"address\":\"$address\",\"gateway\":\"10.88.0.254\"}],\"routes\":[{\"dst\":\"10.99.0.0/16\"}]}" ;;
    *) echo "{\"cniVersion\":\"$version\",\"ips\":[{\"address\":\"$address\",\"gateway\":\"10.88.0.254\"}],\"routes\":[{\"dst\":\"10.99.0.0/16\"}]}" ;;
    esac
    ;;
DEL) rm -f "$lease" ;;
esac
