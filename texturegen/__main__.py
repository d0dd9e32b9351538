from texturegen.cli import main

main()
